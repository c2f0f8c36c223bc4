-- Puts off those deliveries of these notifications, which the caller has locked, that an open incident of their project stops: iOS
-- and web, or topics, until its end or the next probe; of a project that is probed all but one. What expires before comes due
-- then, to be ended. Returns the deliveries that are probes.
create or replace function notify_worker.put_off(notification_ids bigint[], at timestamptz)
returns bigint[]
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    incident stored_incidents;
    stopped bigint[];
    is_mine boolean;
    probe bigint;
    probes bigint[] := '{}';
begin
    for incident in
        select open.*
        from stored_incidents as open
        where open.ended_at is null
            and open.by = 'worker'
            and (open.probes is not null or open.scope = 'topics' and open.until > at)
            and open.project in (select project from notifications where id = any (notification_ids))
        order by open.scope = 'project', open.scope, open.id    -- what another one stops is no probe of the project
    loop
        stopped := array(
            select delivery.id
            from notifications as notification
            join stored_deliveries as delivery
                on delivery.notification_id = notification.id
            where notification.id = any (notification_ids)
                and notification.state = 'pending'
                and notification.project = incident.project
                and delivery.state = 'pending'
                and delivery.due_at <= at
                and stops(incident.scope, delivery)
            order by delivery.due_at, delivery.id
        );
        -- One claim after the other takes a turn; whoever ends it waits, and brings forward what is put off here.
        perform from stored_incidents as locked
        where locked.id = incident.id
        for update skip locked;
        is_mine := found;
        select * into incident from stored_incidents as open where open.id = incident.id;
        continue when incident.ended_at is not null;

        if stopped = '{}' then
            -- What pick took ended unsent: the turn is still to be had.
            if is_mine and incident.scope = 'project' and incident.probes > 0 then
                update stored_incidents as unused
                set probes = unused.probes - 1,
                    until = at
                where unused.id = incident.id;
                perform reckon_pause(incident.project);
            end if;
            continue;
        end if;

        probe := null;
        if not is_mine then
            incident.until := at + interval '1 second';     -- somebody else has it just now: then we look again
        elsif incident.scope = 'project' then
            probe := stopped[1];        -- pick has taken this turn
            incident.until := at;       -- the pause holds the others back, and lets them go
        elsif incident.until <= at then
            update stored_incidents as lapsed
            set probes = lapsed.probes + 1,
                until = at + probe_wait(lapsed.scope, lapsed.probes + 1)
            where lapsed.id = incident.id
            returning lapsed.until into incident.until;
            probe := stopped[1];
        end if;
        probes := probes || probe;

        update stored_deliveries as delivery
        set due_at = greatest(
            at + interval '1 millisecond',
            least(incident.until, expiry(notification, project.expires_after))
        )
        from notifications as notification
        join projects as project
            on project.name = notification.project
        where delivery.id = any (stopped)
            and delivery.id is distinct from probe
            and notification.id = delivery.notification_id;
        if found then
            update notifications    -- else whoever claims it next gives it its deliveries once more
            set expanded_at = at
            where id = any (notification_ids)
                and state = 'pending'
                and expanded_at is null;
            perform settle(notification_ids);
        end if;
    end loop;
    return array_remove(probes, null);
end
$$;
comment on function notify_worker.put_off is 'Puts off the deliveries that an open incident of their project stops, and returns those that are probes.';
