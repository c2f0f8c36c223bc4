-- Which of our trigger functions runs when. A trigger is made only where it is missing or another: that waits for open INSERTs,
-- and `migrate` again must not. One of ours that is not on this list is dropped.
do $$
declare
    wanted text[] := array[
        'create trigger check_notification before insert on notify_worker.notifications for each row execute function check_notification()',
        'create trigger check_device before insert or update on notify_worker.devices for each row execute function check_device()',
        'create trigger check_campaign before insert or update on notify_worker.campaigns for each row execute function check_campaign()',
        'create trigger check_credentials before insert or update on notify_worker.projects for each row execute function check_credentials()',
        'create trigger wake_on_insert after insert on notify_worker.notifications for each statement execute function wake_on_insert()'
    ];
    installed text[];
    statement text;
begin
    select
        coalesce(array_agg(definition), '{}'),
        string_agg(format('drop trigger %I on %s', tgname, tgrelid::regclass), '; ') filter (where definition <> all (wanted))
    into installed, statement
    from pg_trigger
    join pg_class on pg_class.oid = tgrelid
    join pg_proc on pg_proc.oid = tgfoid
    cross join lower(pg_get_triggerdef(pg_trigger.oid)) as definition
    where relnamespace = 'notify_worker'::regnamespace
        and pronamespace = 'notify_worker'::regnamespace
        and proname not like 'procrastinate\_%';

    if statement is not null then
        execute statement;
    end if;
    foreach statement in array wanted loop
        if statement <> all (installed) then
            execute statement;
        end if;
    end loop;
end
$$;
