-- The pauses and incidents of projects, past and present.
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

comment on view notify_worker.incidents is 'The pauses and incidents of projects, past and present.';
comment on column notify_worker.incidents.scope is 'What it blocks: project (everything), apns_web, topics, or devices (that devices are retired).';
comment on column notify_worker.incidents.by is 'operator or worker.';
comment on column notify_worker.incidents.ended_at is 'Null: it is still open.';
