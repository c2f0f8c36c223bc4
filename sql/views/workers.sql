-- The workers that are alive: registered, not rescued, and with a heartbeat within 10 s.
create or replace view notify_worker.workers as
select name, started_at, last_heartbeat_at, host, pid
from notify_worker.stored_workers
where ended_at is null
    and last_heartbeat_at > now() - interval '10 seconds';

comment on view notify_worker.workers is 'The workers that are alive: registered, not rescued, and with a heartbeat within 10 s.';
