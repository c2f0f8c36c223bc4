-- Lists the deliveries that are in flight under a lease. A lease ends within an hour: so far ahead the index is read.
create or replace function notify_worker.deliveries_in_flight(lease uuid)
returns bigint[]
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select array_agg(delivery.id)
    from notifications as notification
    join stored_deliveries as delivery
        on delivery.notification_id = notification.id
    where notification.state = 'pending'
        and notification.project in (select pending_projects())
        and notification.lane in (0, 1)
        and notification.due_at <= clock_timestamp() + interval '1 hour'
        and notification.lease = deliveries_in_flight.lease
        and delivery.state = 'pending'
        and delivery.due_at <= notification.leased_at
$$;
