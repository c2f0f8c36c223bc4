-- The state of the whole installation in one row. Counts stop at 100,000, so that it is cheap at any size.
create or replace view notify_worker.status as
with paused as materialized (
    select distinct project
    from notify_worker.open_incidents
    where scope = 'project'
), near as materialized (
    select pending.project, notification.due_at, notification.lease, notification.leased_by
    from (select max(lease_length) as longest from notify_worker.stored_workers) as workers
    cross join notify_worker.pending_projects() as pending (project)
    cross join (values (0::smallint), (1::smallint)) as lane (number)
    cross join lateral (
        (
            select due_at, lease, leased_by
            from notify_worker.notifications
            where state = 'pending'
                and project = pending.project
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
                and project = pending.project
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
    select due_at
    from near
    where due_at <= now()
        and project not in (select project from paused)
)
select
    (select count(*) from (select from notify_worker.notifications where state = 'pending' limit 100000) as capped) as pending,
    (select least(count(*), 100000) from due) as due,
    (select count(*) from leases where due_at > now()) as leased,
    (select count(*) from leases where due_at <= now() or worker_id is null) as orphans,
    (select now() - min(due_at) from due) as oldest_due_for,
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

comment on view notify_worker.status is 'The state of the whole installation in one row. Counts stop at 100,000.';
comment on column notify_worker.status.due is 'Due notifications of projects that are not paused.';
comment on column notify_worker.status.leased is 'Leased by workers.';
comment on column notify_worker.status.orphans is 'Claimed and without an outcome, but their worker is dead or their lease ran out.';
comment on column notify_worker.status.oldest_due_for is 'How long the oldest due notification has been due; null: nothing is due. The figure to watch.';
comment on column notify_worker.status.held is 'It is unknown whether FCM has them; a person decides: cancel or retry.';
comment on column notify_worker.status.sent_last_minute is 'Deliveries that FCM accepted in the last minute.';
