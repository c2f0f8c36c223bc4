-- Says how many notifications may be claimed of a project as far as its incidents go: any number; or one, as a probe, which puts the
-- next probe off (10 s, doubling to 5 minutes); or none, since another worker makes it.
create or replace function notify_worker.probes_allowed(project text, due_by timestamptz)
returns integer
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
begin
    if not exists (
        select from stored_incidents as incident
        where incident.project = probes_allowed.project
            and incident.scope = 'project'
            and incident.ended_at is null
            and incident.probes is not null
    ) then
        return 2147483647;
    end if;

    -- In the order of begin_incident; whoever has it just now changes what is to be decided here.
    perform from projects where name = probes_allowed.project for update skip locked;
    if not found then
        return 0;
    end if;

    update stored_incidents as incident
    set probes = incident.probes + 1,
        until = due_by + probe_wait(incident.scope, incident.probes + 1)
    where incident.id in (
        select lapsed.id
        from stored_incidents as lapsed
        where lapsed.project = probes_allowed.project
            and lapsed.scope = 'project'
            and lapsed.ended_at is null
            and lapsed.probes is not null
            and lapsed.until <= due_by
        for update skip locked
    );
    if not found then
        return 0;
    end if;
    perform reckon_pause(probes_allowed.project);
    return 1;
end
$$;
comment on function notify_worker.probes_allowed is 'Says how many notifications may be claimed of a project as far as its incidents go: any number, one as a probe, or none.';
