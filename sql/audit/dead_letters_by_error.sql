-- Dead letters of the last 7 days by error, the most frequent first, each with its latest: psql -f sql/audit/dead_letters_by_error.sql
select
    project,
    error_code,
    count(*) as dead_letters,
    min(failed_at) as first_at,
    max(failed_at) as last_at,
    (array_agg(error order by failed_at desc))[1] as latest_error,
    (array_agg(notification_id order by failed_at desc))[1] as latest_notification
from notify_worker.dead_letters
where failed_at > now() - interval '7 days'
group by project, error_code
order by dead_letters desc;
