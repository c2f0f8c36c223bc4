-- The pauses and breakers that are in force now. This is the one place that says when an incident is open: nobody has closed it, it has
-- not ended by itself, and its project exists. A project is paused while it has one of scope `project`.
create or replace view notify_worker.open_incidents as
select
    id,
    project,
    scope,
    by,
    began_at,
    ends_at,
    next_probe_at,
    probe_count,
    reason,
    coalesce(next_probe_at, ends_at) as blocked_until      -- until then nothing of its scope is sent: it ends, or the next probe may be sent
from notify_worker.stored_incidents as incident
where ended_at is null
    and ends_at > clock_timestamp()
    and exists (select from notify_worker.projects where projects.name = incident.project);
