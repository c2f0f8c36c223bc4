-- Says until when a notification is worth sending. (No pinned path, so that it is inlined.)
create or replace function notify_worker.expiry(
    expires_at timestamptz, created_at timestamptz, send_at timestamptz, retried_at timestamptz, expires_after interval
)
returns timestamptz
language sql
stable
as $$
    select coalesce(expires_at, greatest(created_at, send_at, retried_at) + expires_after)
$$;
comment on function notify_worker.expiry is 'Says until when a notification is worth sending.';
