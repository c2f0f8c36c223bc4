-- Puts every dead letter of a project back in line that failed since then, as `retry` does with one; what a worker holds is left out.
-- Returns how many deliveries are due again (one that never came to a delivery is not counted). Refuses a project that is not there
-- (undefined_object).
create or replace function notify_worker.retry_dead_letters(project text, since timestamptz)
returns integer
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    of_one bigint;
    again integer := 0;
begin
    perform check_project(retry_dead_letters.project);
    for of_one in
        select distinct letter.notification_id
        from dead_letters as letter
        where letter.project = retry_dead_letters.project
            and letter.failed_at >= retry_dead_letters.since
        order by letter.notification_id
    loop
        begin
            again := again + retry_deliveries(of_one, null);
        exception
            when object_in_use then
                null;
        end;
    end loop;
    return again;
end
$$;
