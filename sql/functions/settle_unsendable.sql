-- Settles those of these notifications, which the caller has locked, that can't be sent: expired; of a retired campaign;
-- of a campaign or project that is not there; too big to be read. The reason stands in the row, or in its open deliveries.
create or replace function notify_worker.settle_unsendable(notification_ids bigint[])
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    at timestamptz := clock_timestamp();
    found_so bigint[];
begin
    with judged as (
        select
            notification.id,
            case
                when project.name is null then 'failed'
                when expiry(notification.expires_at, notification.created_at, notification.send_at, project.expires_after) <= at
                    then 'expired'
                when its_campaign.retired_at <= at then 'cancelled'
                when notification.campaign is not null and its_campaign.name is null then 'failed'
                when words_are_too_big(notification, its_campaign) then 'failed'
            end as state,
            case
                when project.name is null then format('there is no project "%s"', notification.project)
                    || nearest(notification.project, (select array_agg(name) from projects))
                when expiry(notification.expires_at, notification.created_at, notification.send_at, project.expires_after) <= at
                    then 'it expired before it could be sent'
                when its_campaign.retired_at <= at then format('the campaign "%s" is retired', notification.campaign)
                when notification.campaign is not null and its_campaign.name is null
                    then format('there is no campaign "%s"', notification.campaign)
                    || nearest(notification.campaign, (select array_agg(name) from campaigns))
                else 'words, params, data and message take more than 64 KB'
            end as because
        from notifications as notification
        left join projects as project
            on project.name = notification.project
        left join campaigns as its_campaign
            on its_campaign.name = notification.campaign
        where notification.id = any (notification_ids)
            and notification.state = 'pending'
    ), unsendable as (
        select * from judged where judged.state is not null
    ), ended as (
        update stored_deliveries as delivery
        set state = unsendable.state,
            last_error = unsendable.because,
            settled_at = at
        from unsendable
        where delivery.notification_id = unsendable.id
            and delivery.state = 'pending'
    ), settled as (
        update notifications as notification
        set state = unsendable.state,
            settled_at = at,
            settled_because = unsendable.because
        from unsendable
        where notification.id = unsendable.id
            and notification.expanded_at is null
    )
    select array_agg(id) into found_so from unsendable;

    if found_so is not null then
        perform settle(found_so);
    end if;
end
$$;
comment on function notify_worker.settle_unsendable is
    'Settles the notifications that can''t be sent: expired, campaign retired, campaign or project missing, too big.';
