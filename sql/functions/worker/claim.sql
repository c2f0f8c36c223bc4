-- Claims up to `most` due notifications under `lease`, a token that the caller chose, for the lease length that the worker
-- registered with. Returns what is to be sent: one row a delivery, with the content that makes its message. Devices are looked
-- up now, not at the INSERT. A notification that cannot be sent, or was postponed, is one row with its state and no
-- delivery_id. `limits` maps each project to how many of its notifications may be claimed at most; a project that is not in it
-- is not claimed. A name that no project has needs no limit, since nothing is sent for it. A claim answers every wake-up that
-- waits. Refuses a worker that has unregistered or was rescued (object_not_in_prerequisite_state). `read_delivery` in
-- notify_worker/database/store.py reads the rows.
create or replace function notify_worker.claim(worker_id integer, lease uuid, most integer, limits jsonb)
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
    last_attempt_number integer,
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
    campaign_content jsonb,
    state text
)
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
#variable_conflict use_column
declare
    at timestamptz;
    length interval;
    fresh bigint[];
    again bigint[];     -- those that have deliveries already
    lapsed bigint[];    -- those whose lease ran out
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
            message = format('worker %s has unregistered, or was rescued', claim.worker_id),
            hint = 'Register again, under a new id.';
    end if;

    perform commit_durably();
    perform delete_wakeups();
    at := clock_timestamp();

    select
        array_agg(id) filter (where fanned_out_at is null),
        array_agg(id) filter (where fanned_out_at is not null and lease is null),
        array_agg(id) filter (where lease is not null and try_lock_lapsed_lease(id))
    into fresh, again, lapsed
    from lock_due(most, at, limits);

    again := coalesce(again, '{}') || coalesce(lapsed, '{}');
    picked := coalesce(fresh, '{}') || again;
    if picked = '{}' then
        return;
    end if;
    if lapsed is not null then
        perform end_leases(lapsed);
        at := clock_timestamp();    -- the unknown deliveries are due only since just now
    end if;
    if again <> '{}' then
        perform apply_late(again);
        perform reroute_deliveries(again);
    end if;
    perform settle_unsendable(picked);
    perform fan_out(fresh);
    probes := postpone_blocked(picked, at);

    update notifications
    set lease = claim.lease,
        leased_by = claim.worker_id,
        leased_at = at,
        due_at = at + length,
        fanned_out_at = coalesce(fanned_out_at, at)
    where id = any (picked)
        and state = 'pending'
        and due_at <= at;

    return query
    select
        delivery.id,
        picked_one.id,
        picked_one.project,
        delivery.kind,
        delivery.address,
        delivery.platform,
        notification.on_unknown,
        notification.priority,
        delivery.attempts,
        delivery.last_attempt_number,
        delivery.id = any (probes),
        date_part('epoch', expiry(notification, project.expires_after)) - date_part('epoch', at),
        date_part('epoch', expiry(notification, project.expires_after)),
        installation.prefix || '-' || notification.id,
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
        picked_one.state
    from unnest(picked) as pick (id)
    join notifications as picked_one
        on picked_one.id = pick.id
    left join lateral (     -- driven by what was picked, whatever the statistics say
        select *
        from stored_deliveries as its
        where its.notification_id = picked_one.id
            and its.state = 'pending'
            and its.due_at <= at
            and picked_one.state = 'pending'
        offset 0
    ) as delivery
        on true
    left join notifications as notification     -- only for what is sent: the content of others may be too big to read
        on notification.id = delivery.notification_id
    left join projects as project
        on project.name = notification.project
    left join campaigns as campaign
        on campaign.name = notification.campaign
    cross join installation
    order by picked_one.lane, picked_one.id;
end
$$;
