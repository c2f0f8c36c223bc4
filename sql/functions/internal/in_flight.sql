-- Returns whether a delivery is in flight: claimed under its notification's present lease, and without an outcome so far.
-- No pinned path, so that it is inlined.
create or replace function notify_worker.in_flight(
    delivery notify_worker.stored_deliveries, notification notify_worker.notifications
)
returns boolean
language sql
immutable
as $$
    select notification.lease is not null and delivery.state = 'pending' and delivery.due_at <= notification.leased_at
$$;
