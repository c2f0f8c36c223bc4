-- What must balance, a line each, from two different sources. `balanced` false is a bug, or a hand in the tables.
create or replace view notify_worker.ledger as
with line (what, expected, found) as (
    select
        'deliveries of settled notifications are settled',
        count(*),
        count(*) filter (where delivery.settled_at is not null)
    from notify_worker.notifications as notification
    join notify_worker.stored_deliveries as delivery
        on delivery.notification_id = notification.id
    where notification.settled_at is not null

    union all
    select
        'each sent delivery has one sent attempt that settled it',
        count(*),
        count(*) filter (where attempts.on_time = 1 or (attempts.on_time = 0 and attempts.late > 0))
    from notify_worker.stored_deliveries as delivery,
        lateral (
            select count(*) filter (where not attempt.late) as on_time, count(*) filter (where attempt.late) as late
            from notify_worker.stored_attempts as attempt
            where attempt.delivery_id = delivery.id
                and attempt.verdict = 'sent'
        ) as attempts
    where delivery.state = 'sent'

    union all
    select
        'each sent attempt settled its delivery',
        count(*),
        count(*) filter (where delivery.state = 'sent')
    from notify_worker.stored_attempts as attempt
    join notify_worker.stored_deliveries as delivery
        on delivery.id = attempt.delivery_id
    join notify_worker.notifications as notification
        on notification.id = delivery.notification_id
    where attempt.verdict = 'sent'
        and not attempt.late
        and notification.lease is null

    union all
    select
        'attempts of deliveries are rows of the history that count',
        coalesce(sum(delivery.attempts), 0),
        coalesce(sum(history.counted), 0)
    from notify_worker.stored_deliveries as delivery
    join notify_worker.notifications as notification
        on notification.id = delivery.notification_id
    cross join lateral (
        select count(*) as counted
        from notify_worker.stored_attempts as attempt
        where attempt.delivery_id = delivery.id
            and attempt.verdict <> 'paused'
            and attempt.finished_at is not null
            and not attempt.late
    ) as history
    where notification.lease is null

    union all
    select
        'nothing is due for longer than a lease and 5 s',
        0,
        count(*)
    from notify_worker.notifications
    where state = 'pending'
        and lane in (0, 1)
        and due_at < now() - interval '5 seconds' - coalesce(
            (select max(lease_length) from notify_worker.stored_workers where ended_at is null), interval '2 minutes'
        )

    union all
    select
        'no lease is of a worker that is gone',
        0,
        count(*)
    from notify_worker.notifications as notification
    where notification.state = 'pending'
        and notification.lease is not null
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
            where notification.settled_because is not null
                or exists (
                    select from notify_worker.stored_deliveries as delivery
                    where delivery.notification_id = notification.id
                )
        )
    from notify_worker.notifications as notification
    where notification.settled_at is not null
)
select what, expected::bigint, found::bigint, expected = found as balanced
from line;

comment on view notify_worker.ledger is 'What must balance, a line each, from two different sources.';
