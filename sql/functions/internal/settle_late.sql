-- Settles as sent the deliveries that late outcomes (those whose lease had ended) say were sent, if they are held, or pending
-- and unleased. Skips notifications that are locked or leased: the next function that decides on them applies the outcome from
-- the history. Any other late outcome only stands in the history.
create or replace function notify_worker.settle_late(outcomes jsonb)
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    unleased bigint[];
begin
    select array_agg(id) into unleased
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
    ) as notification;
    perform apply_late(unleased);
end
$$;
