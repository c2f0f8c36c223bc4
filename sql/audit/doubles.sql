-- Deliveries of the last 7 days that FCM may have got more than once, and why: psql -f sql/audit/doubles.sql
-- Counts each attempt of which FCM may have a copy: accepted, or unknown and not known to have stayed here.
select
    notification_id,
    delivery_id,
    count(*) filter (where verdict = 'sent') as accepted,
    count(*) filter (where verdict = 'unknown') as unknown,
    string_agg(coalesce(error_code, verdict), ', ' order by number) as outcomes,
    min(started_at) as first_at
from notify_worker.attempts
where started_at > now() - interval '7 days'
    and verdict in ('sent', 'unknown')
group by notification_id, delivery_id
having count(distinct number) > 1      -- a late answer has the number of the unknown row that it answers
order by first_at desc
limit 200;
