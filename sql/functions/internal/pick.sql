-- Locks up to `most` due notifications and lists them: of each project that has some and is not paused, nor in `not_of`, its share,
-- and no more than this worker's allowance of it; high before normal, but an eighth is normal's where it has any; the longest due
-- first. Of a project that waits for a probe it is one, and of all workers one takes it. One that somebody else has locked is
-- skipped: it delays nobody.
create or replace function notify_worker.pick(worker_id integer, most integer, due_by timestamptz, not_of text[])
returns table (id bigint, expanded_at timestamptz, lease uuid)
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
#variable_conflict use_column
declare
    in_line text[] := array(
        select project
        from projects_due(due_by) as due (project)
        where project <> all (not_of)
        order by random()
    );
    of_project text;
    left_over integer := most;
    projects_left integer := cardinality(in_line);
    share integer;
    of_lane smallint;
    for_normal integer;
    taken integer;
    allowed integer;
begin
    foreach of_project in array in_line loop
        exit when left_over < 1;
        share := ceil(left_over::numeric / projects_left);
        projects_left := projects_left - 1;
        select least(share, floor(allowance.left_over)) into share from allowance(of_project, pick.worker_id);
        if share >= 1 then
            allowed := probes_allowed(of_project, due_by);
            share := least(share, allowed);
        end if;
        continue when share < 1;

        -- Every other probe is what has come last and was never tried: else what fails each time would be asked again and again,
        -- and all else wait.
        if allowed = 1 and exists (
            select from stored_incidents as incident
            where incident.project = of_project
                and incident.scope = 'project'
                and incident.ended_at is null
                and incident.probes % 2 = 0
        ) then
            taken := 0;
            foreach of_lane in array array[1, 0] loop
                return query
                select notification.id, notification.expanded_at, notification.lease
                from notifications as notification
                where notification.state = 'pending'
                    and notification.project = of_project
                    and notification.lane = of_lane
                    and notification.due_at <= due_by
                    and notification.expanded_at is null
                order by notification.due_at desc
                limit 1
                for update skip locked;
                get diagnostics taken = row_count;
                exit when taken > 0;
            end loop;
            left_over := left_over - taken;
            continue when taken > 0;
        end if;

        -- An eighth, so that it is a tenth of any few seconds; and of a small share now and then one.
        select count(*) into for_normal
        from (
            select from notifications as notification
            where notification.state = 'pending'
                and notification.project = of_project
                and notification.lane = 1
                and notification.due_at <= due_by
            order by notification.due_at
            limit floor(share / 8.0 + random())::integer
            for update skip locked      -- what somebody else has locked is no reason to leave room
        ) as waiting;

        foreach of_lane in array array[0, 1] loop
            return query
            select notification.id, notification.expanded_at, notification.lease
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
comment on function notify_worker.pick is 'Locks up to `most` due notifications and lists them: of each project its share, within this worker''s allowance, high before normal.';
