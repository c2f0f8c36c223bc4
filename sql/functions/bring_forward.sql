-- What was put off until the end of an incident is due now: the first 10,000, the others at that time.
create or replace function notify_worker.bring_forward(project text, waited_until timestamptz)
returns void
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    with waiting as (
        select notification.id
        from notifications as notification
        where notification.state = 'pending'
            and notification.project = bring_forward.project
            and notification.lane in (0, 1)
            and notification.due_at = bring_forward.waited_until
            and notification.lease is null
        order by notification.id
        limit 10000
        for update skip locked
    ), brought_forward as (
        update stored_deliveries as delivery
        set due_at = clock_timestamp()
        from waiting
        where delivery.notification_id = waiting.id
            and delivery.state = 'pending'
            and delivery.due_at = bring_forward.waited_until
    )
    update notifications as notification
    set due_at = clock_timestamp()
    from waiting
    where notification.id = waiting.id
$$;
comment on function notify_worker.bring_forward is 'What was put off until the end of an incident is due now.';
