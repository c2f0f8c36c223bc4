-- Records the outcomes of deliveries that this worker holds or held. `outcomes` is an array of objects, one per attempt:
-- delivery_id, notification_id, lease, verdict, requests, started_ago and finished_ago (seconds); and optionally http_status,
-- error_code, error, retry_in (seconds; without it there is no retry), provider_message_id and counts (false: not against
-- max_attempts). History first: each outcome is appended to the attempts, which waits for no row; then it is applied to the
-- rows that are not locked, in the order of their ids. For locked rows the function that ends the lease applies it. Lease and
-- delivery identify an outcome: the same one again is not appended. Returns how many were appended.
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
    -- So that two calls with the same outcomes (after a lost answer) take turns, and a call and the end of its lease too. A row
    -- lock, since any session can take an advisory lock.
    perform from stored_worker_locks as lock where lock.worker_id = record.worker_id for update;
    at := statement_timestamp();    -- not the time after the lock: the ages were computed before the call

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
        clock_timestamp()       -- not the start of this call: `retry` may have come in between
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
            -- Spares the partitions of older months. A minute more in case the clock was set back.
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
