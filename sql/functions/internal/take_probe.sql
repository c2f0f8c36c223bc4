-- Takes the due probe of this scope and schedules the next one. Returns false if no probe is due. The caller has locked the
-- incidents (try_lock_incidents), so only one worker takes it.
create or replace function notify_worker.take_probe(project text, scope text, at timestamptz)
returns boolean
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    update stored_incidents as incident
    set probe_count = incident.probe_count + 1,
        next_probe_at = take_probe.at + probe_backoff(incident.scope, incident.probe_count + 1)
    where incident.id in (
            select open.id
            from open_incidents as open
            where open.project = take_probe.project
                and open.scope = take_probe.scope
        )
        and not exists (
            select from open_incidents as open
            where open.project = take_probe.project
                and open.scope = take_probe.scope
                and open.blocked_until > take_probe.at
        );
    return found;
end
$$;
