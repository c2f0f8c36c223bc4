-- Figures that must balance, from two different sources each: over everything unsettled, and what settled in the last hour.
-- `balanced` is false only after a bug, or a change by hand.
create or replace view notify_worker.ledger as
with notification as materialized (
    select id, state, project, due_at, lease, leased_by, leased_at, settled_at, settled_reason
    from notify_worker.notifications
    where state = 'pending'
    union all
    select id, state, project, due_at, lease, leased_by, leased_at, settled_at, settled_reason
    from notify_worker.notifications
    where state = 'held'
    union all
    select id, state, project, due_at, lease, leased_by, leased_at, settled_at, settled_reason
    from notify_worker.notifications
    where settled_at > now() - interval '1 hour'
), delivery as materialized (
    select
        stored.id,
        stored.notification_id,
        stored.state,
        stored.attempts,
        stored.settled_at,
        notification.lease,
        notification.settled_at as notification_settled_at,
        count(*) filter (where attempt.verdict = 'sent' and not attempt.late) as sent,
        count(*) filter (where attempt.verdict = 'sent' and attempt.late) as sent_late,
        count(*) filter (
            where attempt.counts
                and not attempt.late
                and attempt.recorded_at > coalesce(stored.retried_at, '-infinity')
        ) as counted
    from notification
    join notify_worker.stored_deliveries as stored
        on stored.notification_id = notification.id
    left join notify_worker.stored_attempts as attempt
        on attempt.delivery_id = stored.id
    group by stored.id, notification.lease, notification.settled_at
), line (what, expected, found) as (
    select
        'deliveries of settled notifications are settled',
        count(*),
        count(*) filter (where settled_at is not null)
    from delivery
    where notification_settled_at is not null

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
        count(*) filter (where state = 'sent')
    from delivery
    where sent > 0
        and lease is null

    union all
    select
        'attempts of deliveries are rows of the history that count',
        count(*),
        count(*) filter (where attempts = counted)
    from delivery
    where lease is null

    union all
    select
        'nothing is due for longer than a lease and 5 s while nobody claims',
        0,
        count(*)
    from notification
    where state = 'pending'
        and due_at < now() - interval '5 seconds' - coalesce(
            (select max(lease_length) from notify_worker.stored_workers where ended_at is null), interval '2 minutes'
        )
        and project not in (
            select project from notify_worker.open_incidents where scope = 'project'
        )
        and project not in (
            select project from notification where leased_at > now() - interval '10 seconds'
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
        count(*) filter (where settled_reason is not null or with_deliveries.notification_id is not null)
    from notification
    left join (select distinct notification_id from delivery) as with_deliveries
        on with_deliveries.notification_id = notification.id
    where settled_at is not null
)
select what, expected::bigint, found::bigint, expected = found as balanced
from line;

comment on view notify_worker.ledger is
    'Figures that must balance, from two different sources each: over everything unsettled, and what settled in the last hour.';
