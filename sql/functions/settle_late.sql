-- Applies those of these outcomes that came late (their lease had been taken over) and say sent: each settles its delivery where
-- that is held, or pending and unleased. Any other late answer only stands in the history.
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
            select outcome.notification_id from outcomes_of(outcomes) as outcome where outcome.verdict = 'sent'
        )
            and notification.state in ('pending', 'held')
            and notification.lease is null
        order by notification.id
        for update skip locked
    ) as unleased;
    if free is null then
        return;
    end if;

    update stored_deliveries as delivery
    set state = 'sent',
        last_verdict = 'sent',
        last_error_code = null,
        last_error = null,
        sent_as = outcome.sent_as,
        settled_at = clock_timestamp()
    from outcomes_of(outcomes) as outcome
    where outcome.verdict = 'sent'
        and outcome.notification_id = any (free)
        and delivery.id = outcome.delivery_id
        and delivery.state in ('pending', 'held');
    perform settle(free);
end
$$;
comment on function notify_worker.settle_late is
    'A late outcome that says sent settles its delivery where that is held, or pending and unleased.';
