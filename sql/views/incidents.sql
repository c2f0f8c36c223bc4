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
    coalesce(next_probe_at, ends_at) as blocked_until
from notify_worker.stored_incidents as incident
where ended_at is null
    and ends_at > clock_timestamp()
    and exists (select from notify_worker.projects where projects.name = incident.project);

comment on view notify_worker.open_incidents is 'Ours. The pauses and breakers that are in force now.';
comment on column notify_worker.open_incidents.blocked_until is 'Until then nothing of its scope is sent: it ends by itself, or the next probe may be sent.';

-- Pauses and breakers, past and present.
create or replace view notify_worker.incidents as
select
    incident.project,
    incident.scope,
    incident.by,
    incident.began_at,
    case
        when not exists (select from notify_worker.open_incidents as open where open.id = incident.id)
            then nullif(least(incident.ended_at, incident.ends_at), 'infinity')
    end as ended_at,
    incident.reason
from notify_worker.stored_incidents as incident;

comment on view notify_worker.incidents is 'Pauses and breakers, past and present.';
comment on column notify_worker.incidents.scope is 'What of the project it stops: project, apns_web, topics, or devices (their retiring).';
comment on column notify_worker.incidents.by is 'operator or worker.';
comment on column notify_worker.incidents.ended_at is 'Null: it is still open.';
