-- Lists the pauses of a notification's project that could hold it up, from its creation until it settled: a line of `explain` for
-- the beginning of each, and one for its end.
create or replace function notify_worker.explain_pauses(notification notify_worker.notifications)
returns table (at timestamptz, what text)
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select
        change.at,
        case incident.scope
            when 'project' then format('project %s was ', incident.project)
            when 'apns_web' then format('iOS and web of project %s were ', incident.project)
            else format('topics of project %s were ', incident.project)
        end || change.what
    from incidents as incident
    cross join lateral (
        values
            (
                incident.began_at,
                'paused by ' || case incident.by when 'operator' then 'an operator' else 'a worker' end
                    || coalesce(': ' || incident.reason, '')
            ),
            (incident.ended_at, 'resumed')
    ) as change (at, what)
    where incident.project = notification.project
        and coalesce(incident.ended_at, now()) >= notification.created_at
        and change.at <= coalesce(notification.settled_at, now())
        and (
            incident.scope = 'project'
            or exists (
                select from stored_deliveries as delivery
                where delivery.notification_id = notification.id
                    and scope_covers(incident.scope, delivery)
            )
        )
$$;
