-- A worker found that something of a project is not worth a request: all of it, iOS and web, or topics; or that devices must not be
-- retired any more. `lasts` is in seconds; null: until a probe gets through (of devices: until resume). `per_second` is what this
-- worker has sent just before; after an exceeded quota all go on with half of what they sent together, or were allowed.
-- What goes on already is not begun twice; a time that is later is taken over.
create or replace function notify_worker.begin_incident(
    project text,
    scope text,
    because text,
    lasts double precision default null,
    per_second double precision default null
)
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
set lock_timeout = '500ms'      -- who has the project's row may keep it for long: a worker that tells has more to do
as $$
declare
    at timestamptz;
    ends timestamptz;
    is_probed boolean := begin_incident.lasts is null and begin_incident.scope <> 'devices';
    half double precision := begin_incident.per_second * greatest(1, (select count(*) from workers)) / 2;
begin
    -- Refused at once, or again within a minute, it says little of what FCM takes: then it is half of what was allowed.
    if half = 0 or half > 0 and exists (
        select from stored_incidents as before
        where before.project = begin_incident.project
            and before.per_second is not null
            and least(before.until, before.ended_at) between clock_timestamp() - interval '1 minute' and clock_timestamp()
    ) then
        select greatest(half, per_second(of_project) / 2) into half
        from projects as of_project
        where of_project.name = begin_incident.project;
    end if;

    perform from projects where name = begin_incident.project for update;   -- one after the other
    at := clock_timestamp();
    ends := case
        when begin_incident.lasts is not null then at + make_interval(secs => begin_incident.lasts)
        when begin_incident.scope = 'devices' then 'infinity'
        else at + probe_wait(begin_incident.scope, 0)
    end;

    update stored_incidents as incident
    set ended_at = incident.until
    where incident.project = begin_incident.project
        and incident.ended_at is null
        and incident.probes is null
        and incident.until <= at;

    update stored_incidents as incident
    set until = case when incident.probes is null then greatest(incident.until, ends) else incident.until end,
        per_second = greatest(incident.per_second, half)    -- whoever was refused at once has sent nothing, and knows least
    where incident.project = begin_incident.project
        and incident.scope = begin_incident.scope
        and incident.by = 'worker'
        and incident.ended_at is null
        and (incident.probes is not null) = is_probed;
    if not found then
        insert into stored_incidents (project, scope, by, began_at, until, because, probes, per_second)
        values (
            begin_incident.project,
            begin_incident.scope,
            'worker',
            at,
            ends,
            begin_incident.because || case
                when begin_incident.scope = 'devices' then '. ' || bring_back_devices(begin_incident.project, at)
                else ''
            end,
            case when is_probed then 0 end,
            case when half is not null then greatest(1, half) end
        );
    end if;
    perform reckon_pause(begin_incident.project);
end
$$;
comment on function notify_worker.begin_incident is 'A worker found that something of a project is not worth a request, or that devices must not be retired any more.';
