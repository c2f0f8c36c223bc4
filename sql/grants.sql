-- The three roles and what they may do. The roles are created if the migrating role may create roles, and if another database of the
-- cluster has not created them already. Without them everything works for the owner, and `migrate` grants the rights later.
do $$
declare
    role text;
begin
    foreach role in array array['notify_worker_producer', 'notify_worker_worker', 'notify_worker_auditor'] loop
        if to_regrole(role) is null then
            begin
                execute format('create role %I nologin', role);
            exception
                when duplicate_object or unique_violation then
                    null;       -- the migrate of another database was quicker
            end;
        end if;
    end loop;
exception
    when insufficient_privilege then
        raise warning 'the roles notify_worker_producer, notify_worker_worker and notify_worker_auditor do not exist, and % may not create them',
            current_user
            using hint = 'Everything works for the owner. To share it, let an administrator run: create role notify_worker_producer nologin; '
                'create role notify_worker_worker nologin; create role notify_worker_auditor nologin; and then run migrate again, for the grants.';
end
$$;

-- Revokes what an earlier release granted. What the owner granted to other roles stays.
do $$
declare
    statement text;
begin
    for statement in
        select format('revoke all on %s notify_worker from %s', objects, grantee)
        from unnest(array['schema', 'all tables in schema', 'all sequences in schema', 'all routines in schema']) as objects
        cross join unnest(array['public', 'notify_worker_producer', 'notify_worker_worker', 'notify_worker_auditor']) as grantee
        where grantee = 'public' or to_regrole(grantee) is not null
    loop
        execute statement;
    end loop;
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
            notify_worker.installed_version,
            notify_worker.register_device,
            notify_worker.retire_device
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
            notify_worker.history,
            notify_worker.pending_projects,     -- the view status calls it
            notify_worker.installed_version
        to notify_worker_auditor;
    end if;

    if to_regrole('notify_worker_worker') is not null then
        grant usage on schema notify_worker to notify_worker_worker;
        execute (       -- not on the partitions of the history, which are reached through their parent
            select format(
                'grant select, insert, update, delete on %s to notify_worker_worker',
                string_agg(oid::regclass::text, ', ' order by oid)
            )
            from pg_class
            where relnamespace = 'notify_worker'::regnamespace
                and relkind in ('r', 'p', 'v')
                and not relispartition
        );
        grant usage, select, update on all sequences in schema notify_worker to notify_worker_worker;

        -- functions/worker and functions/internal, procrastinate's, and of functions/public what the worker and its commands call
        execute (
            select format('grant execute on routine %s to notify_worker_worker', string_agg(oid::regprocedure::text, ', '))
            from pg_proc
            where pronamespace = 'notify_worker'::regnamespace
                and prorettype <> 'trigger'::regtype
        );
        revoke execute on function notify_worker.register_device, notify_worker.retire_device from notify_worker_worker;
    end if;
end
$$;
