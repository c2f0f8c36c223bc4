-- Pauses and breakers, past and present.
create or replace view notify_worker.incidents as
select
    project,
    scope,
    by,
    began_at,
    coalesce(ended_at, case when probes is null and until <= now() then until end) as ended_at,
    because
from notify_worker.stored_incidents;

comment on view notify_worker.incidents is 'Pauses and breakers, past and present.';
comment on column notify_worker.incidents.scope is 'What of the project it stops: project, apns_web, topics, or devices (their retiring).';
comment on column notify_worker.incidents.by is 'operator or worker.';
comment on column notify_worker.incidents.ended_at is 'Null: it goes on.';
