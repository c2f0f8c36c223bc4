-- Writes the statement that brings back the devices which were retired in the minute before a breaker stopped that.
create or replace function notify_worker.restore_devices_statement(project text, at timestamptz)
returns text
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select format(
        'What was retired in the minute before comes back by: update notify_worker.devices set retired_at = null, retired_reason = null '
            || 'where project = %L and retired_reason = %L and retired_at between %L and %L',
        project,
        'FCM calls it unregistered',
        at - interval '1 minute',
        at + interval '1 second'
    )
$$;
