-- Deletes up to `most` settled notifications that ended longer ago than `older_than`, with their deliveries, the oldest first, and
-- returns how many. Whole months of the history that are older go with `drop_old_partitions`. An event_id that was deleted no
-- longer protects against a repeat. Refuses a length below zero (invalid_parameter_value).
create or replace function notify_worker.prune(older_than interval, most integer default 1000)
returns integer
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    deleted integer;
begin
    if older_than < interval '0' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('what settled longer ago than %s would be all of it', older_than),
            hint = 'Give a length of zero or more, such as 90 days.';
    end if;

    with old as (
        select id
        from notifications
        where settled_at < now() - prune.older_than
        order by settled_at
        limit prune.most
        for update skip locked
    ), deliveries_gone as (
        delete from stored_deliveries
        using old
        where stored_deliveries.notification_id = old.id
    )
    delete from notifications
    using old
    where notifications.id = old.id;
    get diagnostics deleted = row_count;
    return deleted;
end
$$;
comment on function notify_worker.prune is 'Deletes up to `most` settled notifications that ended longer ago than `older_than`. Returns how many.';
