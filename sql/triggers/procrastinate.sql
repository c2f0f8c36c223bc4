-- procrastinate's trigger functions name their tables without a schema. With a pinned path they also work for sessions with another
-- path, such as psql.
do $$
declare
    trigger_function regprocedure;
begin
    for trigger_function in
        select oid
        from pg_proc
        where pronamespace = 'notify_worker'::regnamespace
            and proname like 'procrastinate\_%'
            and prorettype = 'trigger'::regtype
            and proconfig is null
    loop
        execute format('alter function %s set search_path = pg_catalog, notify_worker, pg_temp', trigger_function);
    end loop;
end
$$;
