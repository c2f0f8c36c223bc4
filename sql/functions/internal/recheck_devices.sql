-- Checks the devices of these unreachable notifications again: if the receiver has registered a new one meanwhile, the
-- notification is due again for it. The caller holds the row locks.
create or replace function notify_worker.recheck_devices(notification_ids bigint[])
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    reachable bigint[];
begin
    update notifications set state = 'pending' where id = any (notification_ids);
    select array_agg(distinct id) into reachable from add_deliveries(notification_ids) as id;

    update notifications
    set state = case when id = any (reachable) then 'pending' else 'unreachable' end,
        due_at = case when id = any (reachable) then clock_timestamp() else due_at end,
        settled_at = case when id = any (reachable) then null else settled_at end
    where id = any (notification_ids);
end
$$;
