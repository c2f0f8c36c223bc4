-- How things stand, in one row. Counts stop at 100,000, so that it is cheap at any size.
create or replace view notify_worker.status as
with paused as materialized (
    select distinct project
    from notify_worker.open_incidents
    where scope = 'project'
), of_project as materialized (
    select line.project, lane.number as lane
    from notify_worker.pending_projects() as line (project)
    cross join (values (0::smallint), (1::smallint)) as lane (number)
    where line.project not in (select project from paused)
), near as materialized (
    select notification.due_at, notification.lease, notification.leased_by
    from (select max(lease_length) as longest from notify_worker.stored_workers) as workers
    cross join notify_worker.pending_projects() as line (project)
    cross join (values (0::smallint), (1::smallint)) as lane (number)
    cross join lateral (
        (
            select due_at, lease, leased_by
            from notify_worker.notifications
            where state = 'pending'
                and project = line.project
                and notifications.lane = lane.number
                and due_at <= now()
            order by due_at
            limit 100000
        )
        union all
        (
            select due_at, lease, leased_by
            from notify_worker.notifications
            where state = 'pending'
                and project = line.project
                and notifications.lane = lane.number
                and due_at > now()
                and due_at <= now() + workers.longest
            order by due_at
            limit 100000
        )
    ) as notification
), leases as materialized (
    select near.due_at, worker.id as worker_id
    from near
    left join notify_worker.stored_workers as worker
        on worker.id = near.leased_by
        and worker.ended_at is null
    where near.lease is not null
    limit 100000
), due as materialized (
    select
    from of_project
    cross join lateral (
        select
        from notify_worker.notifications
        where state = 'pending'
            and project = of_project.project
            and lane = of_project.lane
            and due_at <= now()
        limit 100000
    ) as notification
    limit 100000
), oldest as materialized (
    select min(notification.due_at) as due_at
    from of_project
    cross join lateral (
        select due_at
        from notify_worker.notifications
        where state = 'pending'
            and project = of_project.project
            and lane = of_project.lane
            and due_at <= now()
        order by due_at
        limit 1
    ) as notification
)
select
    (select count(*) from (select from notify_worker.notifications where state = 'pending' limit 100000) as capped) as pending,
    (select count(*) from due) as due,
    (select count(*) from leases where due_at > now()) as leased,
    (select count(*) from leases where due_at <= now() or worker_id is null) as orphans,
    (select now() - due_at from oldest) as oldest_due_for,
    (select count(*) from (select from notify_worker.notifications where state = 'held' limit 100000) as capped) as held,
    (select count(*) from (select from notify_worker.dead_letters limit 100000) as capped) as dead_letters,
    (
        select count(*)
        from notify_worker.stored_workers
        where ended_at is null
            and last_heartbeat_at > now() - interval '10 seconds'
    ) as workers,
    (select count(*) from paused) as paused_projects,
    (
        select count(*)
        from (
            select from notify_worker.stored_attempts
            where recorded_at > now() - interval '1 minute'
                and verdict = 'sent'
            limit 100000
        ) as capped
    ) as sent_last_minute;

comment on view notify_worker.status is 'How things stand, in one row. Counts stop at 100,000.';
comment on column notify_worker.status.due is 'Of projects that are not paused.';
comment on column notify_worker.status.leased is 'In the hands of workers.';
comment on column notify_worker.status.orphans is 'Claimed, without an outcome, and nobody works on them: of a dead worker, or with a lease that ran out.';
comment on column notify_worker.status.oldest_due_for is 'How late the longest due one is; null: nothing is due. The figure to watch.';
comment on column notify_worker.status.held is 'Nobody can say whether FCM has them; for a person to decide: cancel or retry.';
comment on column notify_worker.status.sent_last_minute is 'Deliveries that FCM has accepted.';
