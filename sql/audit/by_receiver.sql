-- A receiver's notifications of the last 30 days, with their states and reasons: psql -v receiver=u_42 -f sql/audit/by_receiver.sql
select at, event_id, campaign, state, reason
from notify_worker.history(:'receiver', now() - interval '30 days')
limit 200;
