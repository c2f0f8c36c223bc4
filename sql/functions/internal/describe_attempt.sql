-- Returns what came of an attempt, as the end of a line of `explain`. No pinned path, so that it is inlined.
create or replace function notify_worker.describe_attempt(attempt notify_worker.stored_attempts)
returns text
language sql
stable
as $$
    select format('attempt %s by %s came to %s', attempt.number, attempt.worker, attempt.verdict)
        || coalesce(': ' || attempt.error, '')
        || case when attempt.verdict = 'sent' then ': FCM has accepted it' || coalesce(' as ' || attempt.provider_message_id, '') else '' end
        || coalesce(case when attempt.verdict <> 'paused' then ', to be tried again at ' || attempt.retry_at end, '')
        || case when attempt.finished_at is not null and not attempt.counts and attempt.verdict <> 'paused' then ' (not counted)' else '' end
        || case when attempt.late then ' (late: its lease had ended)' else '' end
$$;
