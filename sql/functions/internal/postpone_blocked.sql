-- Postpones the deliveries of these notifications that an open incident blocks, until it ends or its next probe, never beyond
-- their expiry. Deliveries of a paused project only move behind this claim, since the pause itself holds them back. If a probe
-- is due, one delivery is left due as the probe. The caller holds the row locks of the notifications. Returns the deliveries to
-- send as probes.
create or replace function notify_worker.postpone_blocked(notification_ids bigint[], at timestamptz)
returns bigint[]
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    incident record;
    blocked bigint[];
    waits_until timestamptz;
    probe bigint;
    probes bigint[] := '{}';
begin
    for incident in
        select open.project, open.scope
        from open_incidents as open
        where open.project in (select project from notifications where id = any (notification_ids))
        group by open.project, open.scope
        order by open.scope = 'project', open.scope, open.project   -- last, so that no delivery that another scope blocks probes the project
    loop
        blocked := array(
            select delivery.id
            from notifications as notification
            cross join lateral (    -- driven by these notifications, whatever the statistics say
                select *
                from stored_deliveries as its
                where its.notification_id = notification.id
                    and its.state = 'pending'
                    and its.due_at <= at
                    and scope_covers(incident.scope, its)
                offset 0
            ) as delivery
            where notification.id = any (notification_ids)
                and notification.state = 'pending'
                and notification.project = incident.project
            order by delivery.id = any (probes) desc, delivery.due_at, delivery.id
        );
        continue when blocked = '{}';

        probe := null;
        if not try_lock_incidents(incident.project, incident.scope) then
            waits_until := at + interval '1 second';    -- another transaction is about to change them: check again then
        else
            if take_probe(incident.project, incident.scope, at) then
                probe := blocked[1];
                probes := probes || probe;
            end if;
            select case when incident.scope = 'project' then at else max(open.blocked_until) end into waits_until
            from open_incidents as open
            where open.project = incident.project
                and open.scope = incident.scope
            having count(*) > 0;
            continue when not found;    -- it was closed before we had the lock
        end if;

        update stored_deliveries as delivery
        set due_at = greatest(
            at + interval '1 millisecond',
            least(waits_until, expiry(notification, project.expires_after))
        )
        from notifications as notification
        join projects as project
            on project.name = notification.project
        where delivery.id = any (blocked)
            and delivery.id is distinct from probe
            and notification.id = delivery.notification_id;
        if found then
            update notifications    -- so that the next claim does not fan it out again
            set fanned_out_at = at
            where id = any (notification_ids)
                and state = 'pending'
                and fanned_out_at is null;
            perform settle(notification_ids);
        end if;
    end loop;
    return probes;
end
$$;
