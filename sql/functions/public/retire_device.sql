-- Retires a device: nothing is sent to its address until it is registered again. Returns whether it was in use.
create or replace function notify_worker.retire_device(kind text, address text, project text default 'default')
returns boolean
language sql
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    with retired as (
        update devices as device
        set retired_at = now(),
            retired_reason = 'retired by the application'
        where device.project = retire_device.project
            and device.kind = retire_device.kind
            and device.address = retire_device.address
            and device.retired_at is null
        returning device.id
    )
    select exists (select from retired)
$$;
comment on function notify_worker.retire_device is 'Retires a device until it is registered again. Returns whether it was in use.';
