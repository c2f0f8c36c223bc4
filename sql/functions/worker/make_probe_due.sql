-- Makes the next probe due at once, since the last one decided nothing: FCM refused only that one message, or no request was made.
-- Two such probes count as none, so that the wait does not grow with them; one still counts, since lock_due chooses every other
-- probe differently. Of postponed notifications only a few become due, to be that probe.
create or replace function notify_worker.make_probe_due(project text, scope text)
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    waited_until timestamptz;
begin
    perform lock_project(make_probe_due.project);
    for waited_until in
        update stored_incidents as incident
        set next_probe_at = least(clock_timestamp(), incident.next_probe_at),
            probe_count = incident.probe_count - case when incident.probe_count > 0 and incident.probe_count % 2 = 0 then 2 else 0 end
        from lock_incidents(make_probe_due.project, make_probe_due.scope) as probed
        where incident.id = probed.id
            and probed.next_probe_at is not null
        returning probed.next_probe_at
    loop
        perform resume_postponed(make_probe_due.project, waited_until, 5);
    end loop;
    if found then
        perform wake_worker();
    end if;
end
$$;
