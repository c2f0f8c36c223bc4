-- Deletes up to `most` settled notifications that ended longer ago than `older_than`, with their deliveries, the oldest first, and
-- returns how many. Whole months of the history that are older go with `drop_old_partitions`. An event_id that was deleted no
-- longer protects against a repeat.
create or replace function notify_worker.prune(older_than interval, most integer default 1000)
returns integer
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    with old as (
        select id
        from notifications
        where settled_at < now() - greatest(prune.older_than, interval '0')
        order by settled_at
        limit prune.most
        for update skip locked
    ), deliveries_gone as (
        delete from stored_deliveries
        using old
        where stored_deliveries.notification_id = old.id
    ), gone as (
        delete from notifications
        using old
        where notifications.id = old.id
        returning notifications.id
    )
    select count(*)::integer from gone
$$;
comment on function notify_worker.prune is 'Deletes up to `most` settled notifications that ended longer ago than `older_than`. Returns how many.';
