-- Says what a worker may claim of a project just now: a token bucket that holds a quarter of a second, filled at the worker's share
-- of the rate, of which it uses a fifth at first; that climbs to all of it within a minute in which it is wanted, and sinks as
-- fast. `fills_at` is per second. A project that is not there has no limit: what is due of it is settled unsent.
-- Nothing is locked, since the row is this worker's alone: a worker that freezes stops no other.
create or replace function notify_worker.allowance(
    project text,
    worker_id integer,
    out left_over double precision,
    out climbed double precision,
    out fills_at double precision
)
language plpgsql
stable
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    before stored_allowances;
    since double precision := 60;
    at_most double precision := coalesce(share(allowance.project), 'infinity');
begin
    select * into before
    from stored_allowances as stored
    where stored.project = allowance.project
        and stored.worker_id = allowance.worker_id;
    if found then
        since := greatest(0, date_part('epoch', clock_timestamp() - before.spent_at));
    end if;

    climbed := coalesce(before.climbed, 0.2) + 0.8 / 60 * case
        -- It was all spent: more was wanted, until there was one more and a second longer.
        when before.left_over < 1 then 2 * least(since, 1 + (1 - before.left_over) / (at_most * before.climbed)) - since
        else - since
    end;
    climbed := least(1, greatest(0.2, climbed));
    fills_at := at_most * climbed;
    left_over := least(greatest(1, fills_at / 4), coalesce(before.left_over + fills_at * since, 'infinity'));
end
$$;
comment on function notify_worker.allowance is 'Says what a worker may claim of a project just now, by its share of the project''s rate.';
