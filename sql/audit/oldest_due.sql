-- What has been due the longest, and why it is not sent: psql -f sql/audit/oldest_due.sql
select
    notification.id,
    notification.event_id,
    notification.project,
    now() - notification.due_at as due_for,
    case
        when project.name is null then 'its project does not exist'
        when pause.project is not null then 'its project is paused: ' || coalesce(pause.reason, 'no reason given')
        when notification.lease is not null then 'its lease has run out; the next claim ends it'
        when not exists (select from notify_worker.workers) then 'no worker is alive'
        else 'it waits for a worker'
    end as in_its_way
from notify_worker.notifications as notification
left join notify_worker.projects as project
    on project.name = notification.project
left join lateral (
    select incident.project, incident.reason
    from notify_worker.incidents as incident
    where incident.project = notification.project
        and incident.scope = 'project'
        and incident.ended_at is null
    limit 1
) as pause
    on true
where notification.state = 'pending'
    and notification.due_at <= now()
order by notification.due_at
limit 50;
