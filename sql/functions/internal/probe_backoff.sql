-- Says how long after a probe, or after the beginning, the next one is made: 10 s, doubling to 5 minutes; for iOS and web 15 minutes.
create or replace function notify_worker.probe_backoff(scope text, probes integer)
returns interval
language sql
immutable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select case
        when scope = 'apns_web' then interval '15 minutes'
        else least(interval '5 minutes', interval '10 seconds' * power(2, least(probes, 10)))
    end
$$;
