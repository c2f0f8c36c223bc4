-- Makes every dead letter of a project that failed since then due again, as `retry` does; leased ones are left out. Returns how
-- many deliveries are due again (a notification that failed before it had deliveries is not counted). Refuses a project that
-- does not exist (undefined_object).
create or replace function notify_worker.retry_dead_letters(project text, since timestamptz)
returns integer
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    notification_id bigint;
    retried integer := 0;
begin
    perform check_project(retry_dead_letters.project);
    for notification_id in
        select distinct letter.notification_id
        from dead_letters as letter
        where letter.project = retry_dead_letters.project
            and letter.failed_at >= retry_dead_letters.since
        order by letter.notification_id
    loop
        begin
            retried := retried + retry_deliveries(notification_id, null);
        exception
            when object_in_use then
                null;
        end;
    end loop;
    return retried;
end
$$;
