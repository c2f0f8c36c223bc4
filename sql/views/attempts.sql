-- The history: one row a try, only ever added to.
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

comment on view notify_worker.attempts is 'The history: one row a try, only ever added to.';
comment on column notify_worker.attempts.started_at is 'When its first request began; of one that was cut off, when it was claimed.';
comment on column notify_worker.attempts.finished_at is 'Null: its worker was gone before it could say; the message may never have left.';
comment on column notify_worker.attempts.verdict is 'sent, retry, failed, unregistered, unknown (FCM may have it or not) or paused (the project''s fault, counts against nothing).';
comment on column notify_worker.attempts.retry_at is 'When the delivery was to be due again. Null: never.';
comment on column notify_worker.attempts.late is 'The lease had been taken over before this outcome came.';
