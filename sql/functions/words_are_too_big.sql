-- Says whether a notification and its campaign hold more than 64 KB of words, params, data and message: nothing in a row can kill
-- a worker. What is small as it is stored is small; only the rest is unpacked and measured.
create or replace function notify_worker.words_are_too_big(
    notification notify_worker.notifications, campaign notify_worker.campaigns
)
returns boolean
language sql
stable
as $$
    select case
        when pg_column_size(notification) + coalesce(pg_column_size(campaign), 0) < 1000 then false
        else octet_length(
            concat(
                notification.title, notification.body, notification.image,
                notification.params, notification.data, notification.message,
                campaign.title, campaign.body, campaign.image, campaign.data, campaign.message
            )
        ) > 65536
    end
$$;
comment on function notify_worker.words_are_too_big is 'Says whether a notification and its campaign hold more than 64 KB of words.';
