-- Locks up to `most` due notifications and lists them. Each project that is not paused gets an equal share, up to its limit in
-- `limits`; a project without a limit is left out, unless no project has that name. High priority goes before normal, but an
-- eighth of the share is kept for normal; within a lane, the longest due go first. From a project whose probe is due it takes
-- one notification, and postpone_blocked decides whether that is the probe. Locked notifications are skipped.
create or replace function notify_worker.lock_due(most integer, due_by timestamptz, limits jsonb)
returns table (id bigint, fanned_out_at timestamptz, lease uuid)
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
#variable_conflict use_column
declare
    in_line text[] := array(
        select project
        from due_projects(due_by) as due (project)
        where limits ? project
            or not exists (select from projects where projects.name = due.project)
        order by random()
    );
    of_project text;
    left_over integer := most;
    projects_left integer := cardinality(in_line);
    share integer;
    of_lane smallint;
    for_normal integer;
    taken integer;
    probes integer;     -- how many were sent for a paused project; null if it is not paused
begin
    foreach of_project in array in_line loop
        exit when left_over < 1;
        share := least(ceil(left_over::numeric / projects_left), (limits ->> of_project)::integer);
        projects_left := projects_left - 1;
        continue when share < 1;
        select max(incident.probe_count) into probes
        from open_incidents as incident
        where incident.project = of_project
            and incident.scope = 'project';
        share := least(share, case when probes is not null then 1 end);

        -- Every other probe is the newest notification without an attempt: a message that fails each time must not be the only
        -- probe while all others wait.
        if probes % 2 = 1 then
            taken := 0;
            foreach of_lane in array array[1, 0] loop
                return query
                select notification.id, notification.fanned_out_at, notification.lease
                from notifications as notification
                where notification.state = 'pending'
                    and notification.project = of_project
                    and notification.lane = of_lane
                    and notification.due_at <= due_by
                    and notification.fanned_out_at is null
                order by notification.due_at desc
                limit 1
                for update skip locked;
                get diagnostics taken = row_count;
                exit when taken > 0;
            end loop;
            left_over := left_over - taken;
            continue when taken > 0;
        end if;

        -- An eighth on average, so that a few seconds always have a tenth; a small share has one now and then.
        select count(*) into for_normal
        from (
            select from notifications as notification
            where notification.state = 'pending'
                and notification.project = of_project
                and notification.lane = 1
                and notification.due_at <= due_by
            order by notification.due_at
            limit floor(share / 8.0 + random())::integer
            for update skip locked      -- locked rows need no room
        ) as waiting;

        foreach of_lane in array array[0, 1] loop
            return query
            select notification.id, notification.fanned_out_at, notification.lease
            from notifications as notification
            where notification.state = 'pending'
                and notification.project = of_project
                and notification.lane = of_lane
                and notification.due_at <= due_by
            order by notification.due_at
            limit case of_lane when 0 then share - for_normal else share end
            for update skip locked;
            get diagnostics taken = row_count;
            share := share - taken;
            left_over := left_over - taken;
        end loop;
    end loop;
end
$$;
