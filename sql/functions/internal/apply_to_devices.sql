-- What these outcomes say of devices: an address that FCM calls unregistered is retired, if it has not registered again since the
-- request began, and no breaker is open; one that was sent to has been seen (written once a day). A device that is locked is left
-- for the next time. Driven from the outcomes, whatever the statistics say: on tables that were never analyzed the planner
-- would join all notifications with all devices first.
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
    ), told as (
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
    set seen_at = case when told.verdict = 'sent' then clock_timestamp() else device.seen_at end,
        retired_at = case when told.verdict = 'unregistered' then clock_timestamp() end,
        retired_reason = case when told.verdict = 'unregistered' then 'FCM calls it unregistered' end
    from told
    where device.id = told.id
$$;
