-- Locks a project and its open incidents of this scope for a claim, without waiting. Returns false if another transaction is
-- about to change them. A transaction that closes or resumes them later waits for the claim, and so finds what it postponed.
create or replace function notify_worker.try_lock_incidents(project text, scope text)
returns boolean
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    perform from stored_project_locks as lock
    where lock.project = try_lock_incidents.project
    for update skip locked;
    if not found then
        return false;
    end if;
    return (select count(*) from lock_incidents(try_lock_incidents.project, try_lock_incidents.scope)) = (
        select count(*)
        from open_incidents as open
        where open.project = try_lock_incidents.project
            and open.scope = try_lock_incidents.scope
            and open.by = 'worker'
    );
end
$$;
