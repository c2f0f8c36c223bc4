-- Returns whether a device reaches a receiver: it is not retired, and is registered to them. Null where there is no device.
-- No pinned path, so that it is inlined.
create or replace function notify_worker.reaches(device notify_worker.devices, receiver_id text)
returns boolean
language sql
immutable
as $$
    select device.retired_at is null and device.receiver_id = reaches.receiver_id
$$;
