-- Locks up to `most` due notifications and lists them: of each project that has some and is not paused its share, high before
-- normal, the longest due first. One that somebody else has locked is skipped: it delays nobody.
create or replace function notify_worker.pick(most integer, due_by timestamptz)
returns table (id bigint, expanded_at timestamptz, lease uuid)
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
#variable_conflict use_column
declare
    in_line text[] := array(
        select line.project
        from projects_in_line() as line (project)
        where not exists (
                select from projects
                where projects.name = line.project
                    and projects.paused_until > due_by
            )
            and exists (
                select
                from (values (0::smallint), (1::smallint)) as lane (number)
                cross join lateral (
                    select from notifications as notification
                    where notification.state = 'pending'
                        and notification.project = line.project
                        and notification.lane = lane.number
                        and notification.due_at <= due_by
                    order by notification.due_at    -- so that the index is read, and one row of it
                    limit 1
                ) as due
            )
        order by random()       -- no project is always the last to take its share
    );
    of_project text;
    left_over integer := most;
    projects_left integer := cardinality(in_line);
    share integer;
    taken integer;
begin
    foreach of_project in array in_line loop
        share := ceil(left_over::numeric / projects_left);
        for of_lane in 0..1 loop
            exit when share <= 0;
            return query
            select notification.id, notification.expanded_at, notification.lease
            from notifications as notification
            where notification.state = 'pending'
                and notification.project = of_project
                and notification.lane = of_lane
                and notification.due_at <= due_by
            order by notification.due_at
            limit share
            for update skip locked;
            get diagnostics taken = row_count;
            share := share - taken;
            left_over := left_over - taken;
        end loop;
        projects_left := projects_left - 1;
    end loop;
end
$$;
comment on function notify_worker.pick is 'Locks up to `most` due notifications and lists them: of each project that is not paused its share, high before normal.';
