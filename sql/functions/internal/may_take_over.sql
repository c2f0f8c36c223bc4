-- Says whether the lease of this notification, which has run out and which the caller has locked, may be taken over: not while
-- its holder is just recording. Holds that off until the caller's commit.
create or replace function notify_worker.may_take_over(notification_id bigint)
returns boolean
language sql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select pg_try_advisory_xact_lock(recording_key(), leased_by::integer)
    from notifications
    where id = may_take_over.notification_id
$$;
comment on function notify_worker.may_take_over is 'Says whether a lease that has run out may be taken over: not while its holder is just recording.';
