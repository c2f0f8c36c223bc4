-- Pauses and incidents, open ones first: psql -f sql/audit/incidents.sql
select
    project,
    scope,
    by,
    began_at,
    coalesce(ended_at, now()) - began_at as lasted,
    ended_at is null as goes_on,
    reason
from notify_worker.incidents
order by goes_on desc, began_at desc
limit 100;
