-- Takes up to `most` due notifications under `lease`, a token that the caller chose, for the lease length that the worker
-- entered with, and returns what is to be sent of them: one row a delivery, with the words that make its message. A device
-- is found now, not at the INSERT. What can't be sent is settled with its reason, and delays nobody; where all that was due
-- ended so, or only this worker's allowance is used up, one row of nulls says in how many seconds it is worth looking again.
-- Of the projects in `not_of` it takes nothing: this worker knows that they are stopped, and could not tell yet.
-- Whoever calls this answers every bell that waits. Refuses a worker that has left or was found dead
-- (object_not_in_prerequisite_state).
create or replace function notify_worker.claim(worker_id integer, lease uuid, most integer, not_of text[] default '{}')
returns table (
    delivery_id bigint,
    notification_id bigint,
    project text,
    kind text,
    address text,
    platform text,
    on_unknown text,
    priority text,
    attempts integer,
    tries integer,
    probe boolean,
    expires_in double precision,
    expires_at double precision,
    tag text,
    title text,
    body text,
    image text,
    data jsonb,
    message jsonb,
    params jsonb,
    campaign text,
    campaign_words jsonb,
    again_in double precision
)
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
#variable_conflict use_column
declare
    at timestamptz;
    length interval;
    fresh bigint[];
    again bigint[];     -- these have deliveries already
    lapsed bigint[];    -- and of these, a lease ran out
    picked bigint[];
    probes bigint[];
begin
    select worker.lease_length into length
    from stored_workers as worker
    where worker.id = claim.worker_id
        and worker.ended_at is null;
    if not found then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('worker %s has left, or was found dead', claim.worker_id),
            hint = 'Enter again, under a new id.';
    end if;

    perform commit_durably();
    perform take_down_bells();
    at := clock_timestamp();

    select
        array_agg(id) filter (where expanded_at is null),
        array_agg(id) filter (where expanded_at is not null and lease is null),
        array_agg(id) filter (where lease is not null and may_take_over(id))
    into fresh, again, lapsed
    from pick(claim.worker_id, most, at, not_of);

    again := coalesce(again, '{}') || coalesce(lapsed, '{}');
    picked := coalesce(fresh, '{}') || again;
    if picked = '{}' then
        again_in := allowed_in(claim.worker_id);
        if again_in is not null then
            return next;
        end if;
        return;
    end if;
    if lapsed is not null then
        perform take_over(lapsed);
        at := clock_timestamp();    -- what is unknown has become due just now
    end if;
    if again <> '{}' then
        perform apply_late(again);
        perform drop_moved_devices(again);
    end if;
    perform settle_unsendable(picked);
    perform expand(fresh);
    probes := put_off(picked, at);

    update notifications
    set lease = claim.lease,
        leased_by = claim.worker_id,
        leased_at = at,
        due_at = at + length,
        expanded_at = coalesce(expanded_at, at)
    where id = any (picked)
        and state = 'pending'
        and due_at <= at;

    return query
    select
        delivery.id,
        notification.id,
        notification.project,
        delivery.kind,
        delivery.address,
        delivery.platform,
        notification.on_unknown,
        notification.priority,
        delivery.attempts,
        delivery.tries,
        delivery.id = any (probes),
        date_part('epoch', expiry(notification, project.expires_after)) - date_part('epoch', at),
        date_part('epoch', expiry(notification, project.expires_after)),
        installation.digits || '-' || notification.id,
        notification.title,
        notification.body,
        notification.image,
        notification.data,
        notification.message,
        notification.params,
        notification.campaign,
        case when campaign.name is not null then jsonb_build_object(
            'title', campaign.title,
            'body', campaign.body,
            'image', campaign.image,
            'data', campaign.data,
            'message', campaign.message
        ) end,
        null::double precision
    from unnest(picked) as pick (id)
    join notifications as notification
        on notification.id = pick.id
    join stored_deliveries as delivery
        on delivery.notification_id = notification.id
        and delivery.state = 'pending'
        and delivery.due_at <= at
    join projects as project
        on project.name = notification.project
    left join campaigns as campaign
        on campaign.name = notification.campaign
    cross join installation
    where notification.state = 'pending'
    order by notification.lane, notification.id;
    if not found then
        again_in := 0;
        return next;
        return;
    end if;

    perform spend(claimed.project, claim.worker_id, claimed.messages)
    from (
        select notification.project, count(*) as messages
        from unnest(picked) as pick (id)
        join notifications as notification
            on notification.id = pick.id
        join stored_deliveries as delivery
            on delivery.notification_id = notification.id
            and delivery.state = 'pending'
            and delivery.due_at <= at
        where notification.state = 'pending'
        group by notification.project
    ) as claimed;
end
$$;
comment on function notify_worker.claim is 'Takes up to `most` due notifications under a lease and returns what is to be sent of them, one row a delivery.';
