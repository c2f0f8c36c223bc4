-- The incidents and pauses in force. This view alone decides when an incident is open: nobody has closed it, its end has not
-- come, and its project exists. A project is paused while it has an open incident of scope `project`.
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
    coalesce(next_probe_at, ends_at) as blocked_until   -- nothing of its scope is sent before: then it ends, or may be probed
from notify_worker.stored_incidents as incident
where ended_at is null
    and ends_at > clock_timestamp()
    and exists (select from notify_worker.projects where projects.name = incident.project);
