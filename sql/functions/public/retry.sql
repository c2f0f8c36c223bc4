-- Puts a notification back in line, in the caller's transaction: what of it is failed, expired, cancelled or held is due again,
-- with a fresh budget of attempts; devices registered since get a delivery; what was sent and what is retired stays out; a
-- cancel is lifted, and an expires_at that has passed. Returns how many deliveries are due again: 0 where it is expanded
-- later, or where there is nothing to retry. Refuses one that a worker holds (object_in_use). Rings.
create or replace function notify_worker.retry(notification_id bigint)
returns integer
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    return retry_deliveries(retry.notification_id, null);
end
$$;
comment on function notify_worker.retry(bigint) is
    'Puts a notification back in line with a fresh budget. Returns how many deliveries are due again.';

create or replace function notify_worker.retry(event_id text)
returns integer
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select coalesce(
        (select retry(notification.id) from notifications as notification where notification.event_id = retry.event_id),
        0
    )
$$;
comment on function notify_worker.retry(text) is 'Puts the notification of an event back in line, as retry does by its number.';
