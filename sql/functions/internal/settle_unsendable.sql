-- Settles those of these notifications, which the caller has locked, that can't be sent: expired; of a retired campaign;
-- of a campaign or project that is not there; too big to be read. The reason stands in the row, or in its open deliveries.
create or replace function notify_worker.settle_unsendable(notification_ids bigint[])
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    at timestamptz := clock_timestamp();
    unsendable_ids bigint[];
begin
    with judged as (
        select
            notification.id,
            notification.project,
            notification.campaign,
            case
                when its_project.name is null then 'no project'
                when expiry(notification, its_project.expires_after) <= at then 'expired'
                when its_campaign.retired_at <= at then 'retired'
                when notification.campaign is not null and its_campaign.name is null then 'no campaign'
                when content_too_big(notification, its_campaign) then 'too big'
            end as reason
        from notifications as notification
        left join projects as its_project
            on its_project.name = notification.project
        left join campaigns as its_campaign
            on its_campaign.name = notification.campaign
        where notification.id = any (notification_ids)
            and notification.state = 'pending'
    ), unsendable as (
        select
            id,
            case reason when 'expired' then 'expired' when 'retired' then 'cancelled' else 'failed' end as state,
            case reason
                when 'no project' then format('there is no project "%s"', project)
                    || did_you_mean(project, (select array_agg(name) from projects))
                when 'expired' then 'it expired before it could be sent'
                when 'retired' then format('the campaign "%s" is retired', campaign)
                when 'no campaign' then format('there is no campaign "%s"', campaign)
                    || did_you_mean(campaign, (select array_agg(name) from campaigns))
                else 'words, params, data and message take more than 64 KB'
            end as because
        from judged
        where reason is not null
    ), ended as (
        update stored_deliveries as delivery
        set state = unsendable.state,
            last_verdict = null,
            last_error_code = null,
            last_error = unsendable.because,
            settled_at = at
        from unsendable
        where delivery.notification_id = unsendable.id
            and delivery.state = 'pending'
    ), settled as (
        update notifications as notification
        set state = unsendable.state,
            settled_at = at,
            settled_reason = unsendable.because
        from unsendable
        where notification.id = unsendable.id
            and notification.fanned_out_at is null
    )
    select array_agg(id) into unsendable_ids from unsendable;
    perform settle(unsendable_ids);
end
$$;
