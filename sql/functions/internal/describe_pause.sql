-- Returns until when a project is paused, in words, and why; no row if it is not paused.
create or replace function notify_worker.describe_pause(project text)
returns table (until text, reason text)
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select
        case
            when open.next_probe_at is not null
                then 'a probe gets through, the next one at ' || date_trunc('second', greatest(open.next_probe_at, now()))
            when open.ends_at = 'infinity' then 'somebody resumes it'
            else date_trunc('second', open.ends_at)::text
        end,
        coalesce(open.reason, 'no reason given')
    from open_incidents as open
    where open.project = describe_pause.project
        and open.scope = 'project'
    order by open.blocked_until desc, open.id
    limit 1
$$;
