-- Who is alive.
create or replace view notify_worker.workers as
select name, started_at, seen_at, host, pid
from notify_worker.stored_workers
where ended_at is null
    and seen_at > now() - interval '10 seconds';

comment on view notify_worker.workers is 'Who is alive: has not left, was not found dead, and was seen within 10 s.';
