-- What must balance, a line each, from two different sources: of everything unsettled, and of what settled in the last hour.
-- `balanced` false is a bug, or a hand in the tables.
create or replace view notify_worker.ledger as
with looked_at as materialized (
    select id from notify_worker.notifications where state = 'pending'
    union
    select id from notify_worker.notifications where state = 'held'
    union
    select id from notify_worker.notifications where settled_at > now() - interval '1 hour'
), notification as materialized (
    select notifications.id, state, project, due_at, lease, leased_by, settled_at, settled_because
    from looked_at
    join notify_worker.notifications
        on notifications.id = looked_at.id
), history as materialized (
    select
        attempt.delivery_id,
        attempt.notification_id,
        delivery.state,
        count(*) filter (where attempt.verdict = 'sent' and not attempt.late) as sent,
        count(*) filter (where attempt.verdict = 'sent' and attempt.late) as sent_late,
        count(*) filter (
            where attempt.verdict <> 'paused'
                and attempt.finished_at is not null
                and not attempt.late
                and attempt.recorded_at > coalesce(delivery.retried_at, '-infinity')
        ) as counted
    from looked_at
    join notify_worker.stored_deliveries as delivery
        on delivery.notification_id = looked_at.id
    join notify_worker.stored_attempts as attempt
        on attempt.delivery_id = delivery.id
    group by attempt.delivery_id, attempt.notification_id, delivery.state
), delivery as materialized (
    select
        stored.id,
        stored.notification_id,
        stored.state,
        stored.attempts,
        stored.settled_at,
        coalesce(history.sent, 0) as sent,
        coalesce(history.sent_late, 0) as sent_late,
        coalesce(history.counted, 0) as counted
    from looked_at
    join notify_worker.stored_deliveries as stored
        on stored.notification_id = looked_at.id
    left join history
        on history.delivery_id = stored.id
), line (what, expected, found) as (
    select
        'deliveries of settled notifications are settled',
        count(*),
        count(*) filter (where delivery.settled_at is not null)
    from notification
    join delivery
        on delivery.notification_id = notification.id
    where notification.settled_at is not null

    union all
    select
        'each sent delivery has one sent attempt that settled it',
        count(*),
        count(*) filter (where sent = 1 or (sent = 0 and sent_late > 0))
    from delivery
    where state = 'sent'

    union all
    select
        'each sent attempt settled its delivery',
        count(*),
        count(*) filter (where delivery.state = 'sent')
    from notification
    join delivery
        on delivery.notification_id = notification.id
    where delivery.sent > 0
        and notification.lease is null

    union all
    select
        'attempts of deliveries are rows of the history that count',
        count(*),
        count(*) filter (where delivery.attempts = delivery.counted)
    from notification
    join delivery
        on delivery.notification_id = notification.id
    where notification.lease is null

    union all
    select
        'nothing is due for longer than a lease and 5 s',
        0,
        count(*)
    from notification
    where state = 'pending'
        and due_at < now() - interval '5 seconds' - coalesce(
            (select max(lease_length) from notify_worker.stored_workers where ended_at is null), interval '2 minutes'
        )
        and not exists (
            select from notify_worker.projects
            where projects.name = notification.project
                and projects.paused_until > now()
        )

    union all
    select
        'no lease is of a worker that is gone',
        0,
        count(*)
    from notification
    where state = 'pending'
        and lease is not null
        and not exists (
            select from notify_worker.stored_workers as worker
            where worker.id = notification.leased_by
                and worker.ended_at is null
        )

    union all
    select
        'each settled notification has deliveries or a reason',
        count(*),
        count(*) filter (
            where settled_because is not null
                or exists (select from delivery where delivery.notification_id = notification.id)
        )
    from notification
    where settled_at is not null
)
select what, expected::bigint, found::bigint, expected = found as balanced
from line;

comment on view notify_worker.ledger is
    'What must balance, a line each, from two different sources: of everything unsettled, and of what settled in the last hour.';
