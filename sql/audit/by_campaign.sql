-- The campaigns of the last 7 days, with their notifications by state: psql -f sql/audit/by_campaign.sql
select
    campaign,
    count(*) as notifications,
    count(*) filter (where state = 'sent') as sent,
    count(*) filter (where state = 'pending') as pending,
    count(*) filter (where state = 'unreachable') as unreachable,
    count(*) filter (where state = 'failed') as failed,
    count(*) filter (where state = 'expired') as expired,
    count(*) filter (where state = 'cancelled') as cancelled,
    count(*) filter (where state = 'held') as held,
    percentile_cont(0.5) within group (order by settled_at - greatest(created_at, send_at)) filter (where state = 'sent') as median_wait
from notify_worker.notifications
where created_at > now() - interval '7 days'
group by campaign
order by notifications desc;
