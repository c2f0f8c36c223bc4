-- Retires the devices that FCM calls unregistered, unless they registered again after the request began or an incident protects
-- the project's devices; marks those that were sent to as seen, at most once a day. Skips devices that are locked. Starts from
-- the outcomes whatever the statistics say: on tables that were never analyzed, the planner would join all notifications with
-- all devices first.
create or replace function notify_worker.apply_to_devices(outcomes jsonb)
returns void
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    with addressed as materialized (
        select outcome.verdict, outcome.started_ago, notification.project, delivery.kind, delivery.address
        from parse_outcomes(outcomes) as outcome
        cross join lateral (select * from stored_deliveries where id = outcome.delivery_id offset 0) as delivery
        cross join lateral (select project from notifications where id = delivery.notification_id offset 0) as notification
        where outcome.verdict in ('sent', 'unregistered')
    ), changed as (
        select device.id, outcome.verdict
        from addressed as outcome
        join devices as device
            on device.project = outcome.project
            and device.kind = outcome.kind
            and device.address = outcome.address
        where device.retired_at is null
            and not (outcome.verdict = 'unregistered' and exists (
                select from open_incidents as open
                where open.project = outcome.project
                    and open.scope = 'devices'
            ))
            and case outcome.verdict
                when 'unregistered' then device.registered_at <= statement_timestamp() - make_interval(secs => outcome.started_ago)
                when 'sent' then device.seen_at < clock_timestamp() - interval '1 day'
            end
        order by device.id
        for update of device skip locked
    )
    update devices as device
    set seen_at = case when changed.verdict = 'sent' then clock_timestamp() else device.seen_at end,
        retired_at = case when changed.verdict = 'unregistered' then clock_timestamp() end,
        retired_reason = case when changed.verdict = 'unregistered' then 'FCM calls it unregistered' end
    from changed
    where device.id = changed.id
$$;
