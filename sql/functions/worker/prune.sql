-- Deletes up to `most` notifications that settled longer ago than `older_than`, oldest first, with their deliveries. Returns
-- how many. The history goes by whole months (drop_old_partitions). A deleted event_id no longer protects against a repeat.
-- Refuses a negative length (invalid_parameter_value).
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
            message = format('older_than is negative: %s', older_than),
            hint = 'Give zero or more, such as 90 days.';
    end if;

    with old as (
        select id
        from notifications
        where settled_at < now() - prune.older_than
        order by settled_at
        limit prune.most
        for update skip locked
    ), deleted_deliveries as (
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
