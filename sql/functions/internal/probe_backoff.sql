-- Returns how long after the beginning, or after a probe, the next probe is due: 10 s, doubling up to 5 minutes; 15 minutes for
-- apns_web.
create or replace function notify_worker.probe_backoff(scope text, probe_count integer)
returns interval
language sql
immutable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select case
        when scope = 'apns_web' then interval '15 minutes'
        else least(interval '5 minutes', interval '10 seconds' * power(2, least(probe_count, 10)))
    end
$$;
