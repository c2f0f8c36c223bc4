-- Returns when a notification expires. No pinned path, so that it is inlined.
create or replace function notify_worker.expiry(notification notify_worker.notifications, expires_after interval)
returns timestamptz
language sql
stable
as $$
    select coalesce(
        notification.expires_at,
        greatest(notification.created_at, notification.send_at, notification.retried_at) + expires_after
    )
$$;
