-- The history: one row per attempt, append-only.
create or replace view notify_worker.attempts as
select
    delivery_id,
    notification_id,
    number,
    worker,
    started_at,
    finished_at,
    verdict,
    requests,
    http_status,
    error_code,
    error,
    retry_at,
    provider_message_id,
    late
from notify_worker.stored_attempts;

comment on view notify_worker.attempts is 'The history: one row per attempt, append-only.';
comment on column notify_worker.attempts.started_at is 'When its first request started; if it was cut off, when its notification was claimed.';
comment on column notify_worker.attempts.finished_at is 'Null: the worker was gone before it recorded an outcome; FCM may have the message or not.';
comment on column notify_worker.attempts.verdict is 'sent, retry, failed, unregistered, unknown (FCM may have it or not) or paused (a fault of the project, not counted).';
comment on column notify_worker.attempts.retry_at is 'When the delivery became due again. Null: never.';
comment on column notify_worker.attempts.late is 'Its lease had ended before this outcome was recorded.';
