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
