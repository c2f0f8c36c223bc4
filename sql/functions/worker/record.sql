-- Writes down what became of deliveries that this worker holds, or held: `outcomes` is an array of objects, one an attempt, with
-- delivery_id, notification_id, lease, verdict, requests, started_ago and finished_ago (seconds), and where there are any
-- http_status, error_code, error, retry_in (seconds; none: never again), provider_message_id and counts (false: not against max_attempts).
-- History first: each outcome is added to the attempts, which waits for nobody; then it is applied to those rows that are not
-- locked, in the order of their ids. What is locked is applied by whoever ends the lease. An outcome is known by its lease
-- and delivery: the same one again is not added. Returns how many were added.
create or replace function notify_worker.record(worker_id integer, outcomes jsonb)
returns integer
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    at timestamptz;
    added integer;
    held bigint[];
begin
    perform commit_durably();
    -- The same outcomes on two connections (an answer was lost), or a lease that is just ended: one after the other. A row, since
    -- anybody who may connect can take an advisory lock.
    perform from stored_worker_locks as its where its.worker_id = record.worker_id for update;
    at := statement_timestamp();    -- the ages were reckoned as the call left: the wait for that lock is none of them

    insert into stored_attempts (
        delivery_id, notification_id, number, lease, worker, started_at, finished_at,
        verdict, requests, http_status, error_code, error, retry_at, provider_message_id, counts, late, recorded_at
    )
    select
        outcome.delivery_id,
        delivery.notification_id,
        coalesce(cut_off.number, delivery.last_attempt_number + 1),
        outcome.lease,
        coalesce(worker.name, record.worker_id::text),
        at - make_interval(secs => outcome.started_ago),
        at - make_interval(secs => outcome.finished_ago),
        outcome.verdict,
        outcome.requests,
        outcome.http_status,
        outcome.error_code,
        outcome.error,
        at + make_interval(secs => outcome.retry_in),
        outcome.provider_message_id,
        outcome.verdict <> 'paused' and coalesce(outcome.counts, true),
        notification.lease is distinct from outcome.lease,
        clock_timestamp()       -- and not when this began: a call may have put the delivery back in line since
    from (select distinct on (delivery_id, lease) * from parse_outcomes(outcomes)) as outcome
    join stored_deliveries as delivery
        on delivery.id = outcome.delivery_id
    join notifications as notification
        on notification.id = delivery.notification_id
    left join stored_workers as worker
        on worker.id = record.worker_id
    left join stored_attempts as cut_off    -- the unknown row that a late outcome answers
        on notification.lease is distinct from outcome.lease
        and cut_off.delivery_id = outcome.delivery_id
        and cut_off.lease = outcome.lease
        and cut_off.finished_at is null
    where not exists (
        select from stored_attempts as known
        where known.delivery_id = outcome.delivery_id
            and known.lease = outcome.lease
            and known.finished_at is not null
            -- It was added after it began: this spares the partitions of older months. A minute, for a clock that was set back.
            and known.recorded_at >= at - make_interval(secs => outcome.started_ago + 60)
    );
    get diagnostics added = row_count;

    select array_agg(id) into held
    from (
        select notification.id
        from notifications as notification
        where (notification.id, notification.lease) in (
            select outcome.notification_id, outcome.lease from parse_outcomes(outcomes) as outcome
        )
        order by notification.id
        for update skip locked
    ) as mine;

    perform apply_history(held);
    perform settle(held);
    perform settle_late(outcomes);
    perform apply_to_devices(outcomes);
    return added;
end
$$;
