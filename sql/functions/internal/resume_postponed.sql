-- Makes due now what was postponed until `waited_until`, the end of an incident or its next probe, until an earlier probe of it,
-- or until an expiry before that. Takes the first `most` notifications; the others become due at their time.
create or replace function notify_worker.resume_postponed(project text, waited_until timestamptz, most integer default 10000)
returns void
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    with waiting as (
        select notification.id, notification.due_at
        from notifications as notification
        join projects as project
            on project.name = notification.project
        where notification.state = 'pending'
            and notification.project = resume_postponed.project
            and notification.lane in (0, 1)
            and notification.due_at > clock_timestamp()
            and notification.due_at <= resume_postponed.waited_until
            and (
                notification.due_at in (resume_postponed.waited_until, expiry(notification, project.expires_after))
                or exists (     -- postponed until an earlier probe; what was attempted waits for its retry instead
                    select from stored_deliveries as delivery
                    where delivery.notification_id = notification.id
                        and delivery.state = 'pending'
                        and delivery.due_at = notification.due_at
                        and coalesce(delivery.last_verdict, 'paused') = 'paused'
                )
            )
            and notification.fanned_out_at is not null
            and notification.lease is null
        order by notification.id
        limit resume_postponed.most
        for update of notification skip locked
    ), resumed as (
        update stored_deliveries as delivery
        set due_at = clock_timestamp()
        from waiting
        where delivery.notification_id = waiting.id
            and delivery.state = 'pending'
            and delivery.due_at = waiting.due_at
    )
    update notifications as notification
    set due_at = clock_timestamp()
    from waiting
    where notification.id = waiting.id
$$;
