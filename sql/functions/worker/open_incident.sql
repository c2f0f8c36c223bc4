-- Blocks a scope of a project (project, apns_web or topics), or stops the retiring of its devices (devices). `lasts` is in
-- seconds; null: until a probe succeeds, or for devices until `resume`. `sent_rate` is how many messages a second this worker
-- sent just before FCM's quota was exceeded. An incident that is already open is not opened twice, but takes over a later end.
-- Waits for no operator: if an open `resume` has locked the incident, another one is opened beside it.
create or replace function notify_worker.open_incident(
    project text,
    scope text,
    reason text,
    lasts double precision default null,
    sent_rate double precision default null
)
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    opened stored_incidents;
begin
    perform lock_project(open_incident.project);
    opened.began_at := clock_timestamp();
    opened.ends_at := coalesce(opened.began_at + make_interval(secs => open_incident.lasts), 'infinity');
    if open_incident.lasts is null and open_incident.scope <> 'devices' then
        opened.next_probe_at := opened.began_at + probe_backoff(open_incident.scope, 0);
    end if;
    opened.project_rate := rate_after_quota(open_incident.project, open_incident.sent_rate);

    update stored_incidents as incident     -- keeps the index of open incidents small
    set ended_at = incident.ends_at
    where incident.id in (
        select lapsed.id
        from stored_incidents as lapsed
        where lapsed.project = open_incident.project
            and lapsed.ended_at is null
            and lapsed.ends_at <= opened.began_at
        for update skip locked
    );

    update stored_incidents as incident
    set ends_at = greatest(incident.ends_at, opened.ends_at),
        project_rate = greatest(incident.project_rate, opened.project_rate)    -- the worker that sent most knows best
    from lock_incidents(open_incident.project, open_incident.scope) as known
    where incident.id = known.id
        and (known.next_probe_at is null) = (opened.next_probe_at is null);
    if found then
        return;
    end if;

    if open_incident.scope = 'devices' then
        open_incident.reason := open_incident.reason || format(
            '. What was retired in the minute before comes back by: update notify_worker.devices set retired_at = null, '
                || 'retired_reason = null where project = %L and retired_reason = %L and retired_at between %L and %L',
            open_incident.project,
            'FCM calls it unregistered',
            opened.began_at - interval '1 minute',
            opened.began_at + interval '1 second'
        );
    end if;
    insert into stored_incidents (project, scope, by, began_at, ends_at, next_probe_at, reason, project_rate)
    values (
        open_incident.project,
        open_incident.scope,
        'worker',
        opened.began_at,
        opened.ends_at,
        opened.next_probe_at,
        open_incident.reason,
        opened.project_rate
    );
end
$$;
