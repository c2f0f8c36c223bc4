-- Registers a worker: gives it a name and an id that is never reused, and takes the advisory lock of that id for this session,
-- before the row is visible to others. `holds_lock` is false if the session is not the worker's own.
create or replace function notify_worker.register_worker(
    host text,
    pid integer,
    lease_length interval,
    holds_lock boolean default true,
    out id integer,
    out name text
)
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    insert into stored_workers as worker (name, host, pid, lease_length, holds_lock)
    values ('', register_worker.host, register_worker.pid, register_worker.lease_length, register_worker.holds_lock)
    returning worker.id into register_worker.id;

    insert into stored_worker_locks (worker_id)
    values (register_worker.id)
    on conflict do nothing;

    if register_worker.holds_lock then
        perform pg_advisory_lock(presence_lock_class(), register_worker.id);
    end if;

    update stored_workers as worker
    set name = format('%s-%s-%s', register_worker.host, register_worker.pid, register_worker.id)
    where worker.id = register_worker.id
    returning worker.name into register_worker.name;
end
$$;
