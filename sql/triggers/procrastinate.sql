-- procrastinate's trigger functions name their tables without a schema: pinned to ours, they also work for whoever puts a job in or
-- takes one out in psql.
do $$
declare
    of_procrastinate regprocedure;
begin
    for of_procrastinate in
        select oid
        from pg_proc
        where pronamespace = 'notify_worker'::regnamespace
            and proname like 'procrastinate\_%'
            and prorettype = 'trigger'::regtype
            and proconfig is null
    loop
        execute format('alter function %s set search_path = pg_catalog, notify_worker, pg_temp', of_procrastinate);
    end loop;
end
$$;
