-- Who may do what. Three roles, made where the migrating role may make roles; another database of the cluster may have made
-- them already, or be making them at this moment. Where they can't be made, everything works for the owner, and the grants
-- below can be run later, by whoever may: migrate says so.
revoke all on schema notify_worker from public;
revoke all on all tables in schema notify_worker from public;
revoke all on all sequences in schema notify_worker from public;
revoke all on all routines in schema notify_worker from public;

do $$
declare
    of_ours text;
begin
    foreach of_ours in array array['notify_worker_producer', 'notify_worker_worker', 'notify_worker_auditor'] loop
        if to_regrole(of_ours) is null then
            begin
                execute format('create role %I nologin', of_ours);
            exception
                when duplicate_object or unique_violation then
                    null;       -- another database's migrate was quicker
            end;
        end if;
    end loop;
exception
    when insufficient_privilege then
        raise warning 'the roles notify_worker_producer, notify_worker_worker and notify_worker_auditor are not there, and % may not make them',
            current_user
            using hint = 'Everything works for the owner. To share it, let an administrator run: create role notify_worker_producer nologin; '
                'create role notify_worker_worker nologin; create role notify_worker_auditor nologin; and then run migrate again, for the grants.';
end
$$;

do $$
begin
    if to_regrole('notify_worker_producer') is not null then
        grant usage on schema notify_worker to notify_worker_producer;
        grant insert (
            event_id, receiver_id, kind, address, campaign, title, body, image, params, data, message,
            priority, send_at, expires_at, on_unknown, project, traceparent
        ) on notify_worker.notifications to notify_worker_producer;
        grant select (id, event_id) on notify_worker.notifications to notify_worker_producer;
        grant execute on function
            notify_worker.cancel(text),
            notify_worker.cancel(bigint),
            notify_worker.installed_version(),
            notify_worker.register_device(text, text, text, text, text, text),
            notify_worker.retire_device(text, text, text)
        to notify_worker_producer;
    end if;

    if to_regrole('notify_worker_auditor') is not null then
        grant usage on schema notify_worker to notify_worker_auditor;
        grant select on
            notify_worker.deliveries,
            notify_worker.attempts,
            notify_worker.dead_letters,
            notify_worker.status,
            notify_worker.ledger,
            notify_worker.workers,
            notify_worker.incidents
        to notify_worker_auditor;
        grant execute on function
            notify_worker.explain(text),
            notify_worker.explain(bigint),
            notify_worker.history(text, timestamptz),
            notify_worker.projects_in_line(),   -- the view status asks it
            notify_worker.installed_version()
        to notify_worker_auditor;
    end if;

    if to_regrole('notify_worker_worker') is not null then
        grant usage on schema notify_worker to notify_worker_worker;
        grant select, insert, update, delete on all tables in schema notify_worker to notify_worker_worker;
        grant usage, select, update on all sequences in schema notify_worker to notify_worker_worker;
        grant execute on all routines in schema notify_worker to notify_worker_worker;
    end if;
end
$$;
