-- Applies those of these outcomes that came late (their lease had been taken over) and say sent: each settles its delivery where
-- that is held, or pending and unleased. What somebody has locked, or a worker holds, is settled by whoever decides on it next.
-- Any other late answer only stands in the history.
create or replace function notify_worker.settle_late(outcomes jsonb)
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    free bigint[];
begin
    select array_agg(id) into free
    from (
        select notification.id
        from notifications as notification
        where notification.id in (
            select outcome.notification_id from parse_outcomes(outcomes) as outcome where outcome.verdict = 'sent'
        )
            and notification.state in ('pending', 'held')
            and notification.lease is null
        order by notification.id
        for update skip locked
    ) as unleased;
    perform apply_late(free);
end
$$;
