-- Creates our triggers. Creating one waits for open INSERTs, which a repeated `migrate` must not, so only missing or changed ones
-- are created. Triggers of ours that are not listed are dropped.
do $$
declare
    wanted text[] := array[
        'create trigger check_notification before insert on notify_worker.notifications for each row execute function check_notification()',
        'create trigger check_device before insert or update on notify_worker.devices for each row execute function check_device()',
        'create trigger check_campaign before insert or update on notify_worker.campaigns for each row execute function check_campaign()',
        'create trigger check_credentials before insert or update on notify_worker.projects for each row execute function check_credentials()',
        'create trigger wake_on_insert after insert on notify_worker.notifications for each statement execute function wake_on_insert()'
    ];
    statement text;
begin
    for statement in
        with installed as (
            select definition, format('drop trigger %I on %s', tgname, tgrelid::regclass) as drop_it
            from pg_trigger
            join pg_class on pg_class.oid = tgrelid
            join pg_proc on pg_proc.oid = tgfoid
            cross join lower(pg_get_triggerdef(pg_trigger.oid)) as definition
            where relnamespace = 'notify_worker'::regnamespace
                and pronamespace = 'notify_worker'::regnamespace
                and proname not like 'procrastinate\_%'
        )
        select drop_it from installed where definition <> all (wanted)
        union all
        select create_it from unnest(wanted) as create_it where create_it not in (select definition from installed)
    loop
        execute statement;
    end loop;
end
$$;
