-- Lists what happened to a notification in order, one line per event, and last its present state. Addresses are cut to their last
-- 6 characters. Returns no line if the notification does not exist.
create or replace function notify_worker.explain(notification_id bigint)
returns table (at timestamptz, what text)
language sql
stable
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    with notification as (
        select * from notifications where id = explain.notification_id
    ), delivery as (
        select
            stored.*,
            format('delivery %s (%s …%s)', stored.id, coalesce(stored.platform, stored.kind), right(stored.address, 6)) as name
        from stored_deliveries as stored
        where stored.notification_id = explain.notification_id
    )
    select line.at, line.what
    from (
        select
            created_at as at,
            0 as rank,
            format(
                'notification %s%s was inserted for %s',
                id,
                coalesce(' (event ' || event_id || ')', ''),
                coalesce('receiver ' || receiver_id, format('the %s …%s', kind, right(address, 6)))
            ) || coalesce(', to be sent at ' || send_at, '') as what
        from notification
        union all
        select created_at, 1, name || ' was created' from delivery
        union all
        select coalesce(attempt.finished_at, attempt.recorded_at), 2, delivery.name || ': ' || describe_attempt(attempt)
        from delivery
        join stored_attempts as attempt
            on attempt.delivery_id = delivery.id
        union all
        select settled_at, 3, name || ' ended ' || state || coalesce(': ' || last_error, '')
        from delivery
        where state in ('failed', 'expired', 'cancelled')
        union all
        select cancelled_at, 3, 'it was cancelled by a call' from notification where cancelled_at is not null
        union all
        select retried_at, 3, 'it was made due again by a call' from notification where retried_at is not null
        union all
        select pause.at, 3, pause.what
        from notifications as paused
        cross join lateral explain_pauses(paused) as pause
        where paused.id = explain.notification_id
        union all
        select settled_at, 4, 'it ended ' || state || coalesce(': ' || settled_reason, '')
        from notification
        where settled_at is not null
        union all
        select
            clock_timestamp(),
            5,
            case
                when state = 'held' then 'it is held: it is unknown whether FCM has it, and it is for a person to decide'
                when lease is not null then format('it is pending: worker %s has leased it until %s at the latest',
                    coalesce((select name from stored_workers where stored_workers.id = leased_by), leased_by::text), due_at)
                when paused.until is not null then format('it is pending, and its project is paused until %s: %s', paused.until, paused.reason)
                else format('it is pending, due at %s', due_at)
            end
        from notification
        left join lateral describe_pause(notification.project) as paused
            on true
        where settled_at is null
    ) as line
    order by line.at, line.rank
$$;
comment on function notify_worker.explain(bigint) is 'Lists what happened to a notification in order, one line per event.';

create or replace function notify_worker.explain(event_id text)
returns table (at timestamptz, what text)
language sql
stable
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select line.at, line.what
    from notifications as notification
    cross join lateral explain(notification.id) as line
    where notification.event_id = explain.event_id
$$;
comment on function notify_worker.explain(text) is 'Lists what happened to the notification of an event.';
