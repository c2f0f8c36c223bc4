-- What has been due the longest, who holds it, and what is in its way: psql -f sql/audit/oldest_due.sql
select
    notification.id,
    notification.event_id,
    notification.project,
    now() - notification.due_at as due_for,
    case
        when project.name is null then 'its project is not there'
        when project.paused_until > now() then 'its project is paused: ' || coalesce(project.paused_because, 'no reason given')
        when notification.lease is not null then 'its lease has run out; a worker will take it over'
        when not exists (select from notify_worker.workers) then 'no worker is alive'
        else 'it waits for a worker'
    end as in_its_way
from notify_worker.notifications as notification
left join notify_worker.projects as project
    on project.name = notification.project
where notification.state = 'pending'
    and notification.due_at <= now()
order by notification.due_at
limit 50;
