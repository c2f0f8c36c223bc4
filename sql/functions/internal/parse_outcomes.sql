-- Returns the outcomes that a worker passes to `record` as rows. No pinned path, so that it is inlined.
create or replace function notify_worker.parse_outcomes(outcomes jsonb)
returns table (
    delivery_id bigint,
    notification_id bigint,
    lease uuid,
    verdict text,
    requests integer,
    started_ago double precision,
    finished_ago double precision,
    http_status integer,
    error_code text,
    error text,
    retry_in double precision,
    provider_message_id text,
    counts boolean
)
language sql
immutable
as $$
    select *
    from jsonb_to_recordset(outcomes) as outcome (
        delivery_id bigint,
        notification_id bigint,
        lease uuid,
        verdict text,
        requests integer,
        started_ago double precision,
        finished_ago double precision,
        http_status integer,
        error_code text,
        error text,
        retry_in double precision,
        provider_message_id text,
        counts boolean
    )
$$;
