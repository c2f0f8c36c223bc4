-- Settles those of these notifications that cannot be sent: expired, of a retired campaign, of a campaign or project that does
-- not exist, or too big. The reason is written to the notification, or to its open deliveries. The caller holds the row locks.
create or replace function notify_worker.settle_unsendable(notification_ids bigint[])
returns void
language plpgsql
set search_path = pg_catalog, notify_worker, pg_temp
as $$
declare
    at timestamptz := clock_timestamp();
    unsendable_ids bigint[];
begin
    with checked as (
        select
            notification.id,
            notification.project,
            notification.campaign,
            case
                when projects.name is null then 'no project'
                when expiry(notification, projects.expires_after) <= at then 'expired'
                when campaigns.retired_at <= at then 'retired'
                when notification.campaign is not null and campaigns.name is null then 'no campaign'
                when content_too_big(notification, campaigns) then 'too big'
            end as reason
        from notifications as notification
        left join projects
            on projects.name = notification.project
        left join campaigns
            on campaigns.name = notification.campaign
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
                else 'its content and params take more than 64 KB'
            end as explanation
        from checked
        where reason is not null
    ), ended as (
        update stored_deliveries as delivery
        set state = unsendable.state,
            last_verdict = null,
            last_error_code = null,
            last_error = unsendable.explanation,
            settled_at = at
        from unsendable
        where delivery.notification_id = unsendable.id
            and delivery.state = 'pending'
    ), settled as (
        update notifications as notification
        set state = unsendable.state,
            settled_at = at,
            settled_reason = unsendable.explanation
        from unsendable
        where notification.id = unsendable.id
            and notification.fanned_out_at is null
    )
    select array_agg(id) into unsendable_ids from unsendable;
    perform settle(unsendable_ids);
end
$$;
