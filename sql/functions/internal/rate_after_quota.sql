-- Returns the rate at which all workers together go on after FCM's quota was exceeded, in messages a second: half of what they
-- sent, estimated from what one of them just sent (`sent_rate`), and at least one. Null if `sent_rate` is null: it was not the
-- quota.
create or replace function notify_worker.rate_after_quota(project text, sent_rate double precision)
returns double precision
language sql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select greatest(1, sent.half, case
        -- If nothing was sent, or the last limit ended within a minute, the sent rate says little: take half of the allowed rate.
        when sent.half = 0 or exists (
            select from stored_incidents as before
            where before.project = rate_after_quota.project
                and before.project_rate is not null
                and least(before.ends_at, before.ended_at) between clock_timestamp() - interval '1 minute' and clock_timestamp()
        ) then (
            select project_rate(of_project) / 2
            from projects as of_project
            where of_project.name = rate_after_quota.project
        )
    end)
    from (
        select rate_after_quota.sent_rate * greatest(1, (select count(*) from workers)) / 2 as half
    ) as sent
    where sent.half is not null
$$;
