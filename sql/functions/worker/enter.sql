-- A worker enters: gives it an id that is never used again and a name, and takes the lock of that id for this session.
-- The lock is taken before anybody can see the row; `locks` is false where the session is not the worker's own.
create or replace function notify_worker.enter(
    host text,
    pid integer,
    lease_length interval,
    locks boolean default true,
    out id integer,
    out name text
)
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    insert into stored_workers as worker (name, host, pid, lease_length, locks)
    values ('', enter.host, enter.pid, enter.lease_length, enter.locks)
    returning worker.id into enter.id;

    if enter.locks then
        perform pg_advisory_lock(presence_key(), enter.id);
    end if;

    update stored_workers as worker
    set name = format('%s-%s-%s', enter.host, enter.pid, enter.id)
    where worker.id = enter.id
    returning worker.name into enter.name;
end
$$;
comment on function notify_worker.enter is 'A worker enters: gives it an id that is never used again and a name, and takes the lock of that id.';
