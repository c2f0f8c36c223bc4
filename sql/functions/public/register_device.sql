-- Registers a device. An address belongs to the receiver that registered it last: registered again, it moves to the new
-- receiver, and is in use again if it was retired. `replaces` names the previous address of the same device, which is retired
-- as replaced; its waiting deliveries go to the new one. Returns the device's id. Refuses a kind other than token and fid, and
-- a platform other than android, ios and web (check_violation), and nulls (not_null_violation).
create or replace function notify_worker.register_device(
    receiver_id text,
    kind text,
    address text,
    platform text default null,
    project text default 'default',
    replaces text default null
)
returns bigint
language sql
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    with registered as (
        insert into devices as device (receiver_id, kind, address, platform, project, registered_at)
        values (
            register_device.receiver_id,
            register_device.kind,
            register_device.address,
            register_device.platform,
            register_device.project,
            clock_timestamp()   -- not the transaction's: the answer to an earlier request must not retire it
        )
        on conflict on constraint devices_address_once do update
            set receiver_id = excluded.receiver_id,
                platform = coalesce(excluded.platform, device.platform),
                registered_at = excluded.registered_at,
                seen_at = now(),
                retired_at = null,
                retired_reason = null,
                replaced_by = null
        returning device.id
    ), predecessor as (
        select device.id
        from devices as device
        where device.project = register_device.project
            and device.kind in ('token', 'fid')
            and device.address = register_device.replaces
            and (device.kind, device.address) <> (register_device.kind, register_device.address)
    ), replaced as (
        update devices as device
        set retired_at = coalesce(device.retired_at, now()),
            retired_reason = coalesce(device.retired_reason, 'replaced'),
            replaced_by = registered.id
        from registered
        where (device.id in (select id from predecessor) or device.replaced_by in (select id from predecessor))
            and device.id <> registered.id
    )
    select id from registered
$$;
comment on function notify_worker.register_device is 'Registers a device; an address moves to the receiver that registered it last. Returns the device''s id.';
