-- Gives back deliveries that were claimed under this lease and not sent, or without a list all of it: they are due again at once,
-- and nothing is counted.
create or replace function notify_worker.release(lease uuid, delivery_ids bigint[] default null)
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    given_back bigint[] := coalesce(delivery_ids, deliveries_out(release.lease));
    held bigint[];
begin
    select array_agg(id) into held
    from (
        select notification.id
        from notifications as notification
        where notification.lease = release.lease
            and notification.id in (select notification_id from stored_deliveries where id = any (given_back))
        order by notification.id
        for update skip locked
    ) as mine;

    update stored_deliveries as delivery
    set due_at = greatest(clock_timestamp(), notification.leased_at + interval '1 microsecond')
    from notifications as notification
    where delivery.id = any (given_back)
        and delivery.state = 'pending'
        and delivery.due_at <= notification.leased_at
        and notification.id = delivery.notification_id
        and notification.id = any (held);
    perform settle(held);
end
$$;
comment on function notify_worker.release is 'Gives back deliveries that were claimed and not sent: due again at once, nothing is counted.';
