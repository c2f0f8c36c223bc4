-- Returns whether a notification and its campaign hold more than 64 KB of content and params together, which could exhaust a
-- worker's memory. Measured as text, since the compressed form can be a hundred times smaller. No pinned path, so that it is
-- inlined.
create or replace function notify_worker.content_too_big(
    notification notify_worker.notifications, campaign notify_worker.campaigns
)
returns boolean
language sql
stable
as $$
    select 65536 < coalesce(octet_length(notification.title), 0)
        + coalesce(octet_length(notification.body), 0)
        + coalesce(octet_length(notification.image), 0)
        + coalesce(octet_length(notification.params::text), 0)
        + coalesce(octet_length(notification.data::text), 0)
        + coalesce(octet_length(notification.message::text), 0)
        + coalesce(octet_length(campaign.title), 0)
        + coalesce(octet_length(campaign.body), 0)
        + coalesce(octet_length(campaign.image), 0)
        + coalesce(octet_length(campaign.data::text), 0)
        + coalesce(octet_length(campaign.message::text), 0)
$$;
