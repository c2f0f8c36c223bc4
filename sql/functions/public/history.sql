-- Lists a receiver's notifications, newest first, each with its state and the reason for it.
create or replace function notify_worker.history(receiver_id text, since timestamptz default '-infinity')
returns table (at timestamptz, event_id text, notification_id bigint, campaign text, state text, reason text)
language sql
stable
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select
        notification.created_at,
        notification.event_id,
        notification.id,
        notification.campaign,
        notification.state,
        case
            when notification.settled_reason is not null then notification.settled_reason
            when notification.state = 'sent' then 'FCM has accepted it'
            when notification.state = 'held' then 'it is unknown whether FCM has it; it is for a person to decide'
            when notification.cancelled_at is not null then 'it was cancelled by a call'
            when notification.state = 'pending' and notification.lease is not null then 'a worker has leased it'
            when notification.state = 'pending' and paused.reason is not null then 'its project is paused: ' || paused.reason
            when notification.state = 'pending' and blocked.reason is not null then blocked.reason
            when notification.state = 'pending' and notification.due_at > now()
                then coalesce(last.error || ', ', '') || 'due at ' || notification.due_at
            when notification.state = 'pending' then 'it is due'
            else coalesce(last.error, 'no reason was recorded')
        end
    from notifications as notification
    left join lateral (
        select delivery.last_error as error
        from stored_deliveries as delivery
        where delivery.notification_id = notification.id
            and delivery.last_error is not null
        order by delivery.settled_at desc nulls last
        limit 1
    ) as last on true
    left join lateral describe_pause(notification.project) as paused
        on true
    left join lateral (
        select case open.scope when 'apns_web' then 'iOS and web' else 'topics' end
            || ' of its project are paused: ' || open.reason as reason
        from open_incidents as open
        join stored_deliveries as delivery
            on delivery.notification_id = notification.id
            and delivery.state = 'pending'
            and scope_covers(open.scope, delivery)
        where notification.state = 'pending'
            and open.project = notification.project
            and open.scope in ('apns_web', 'topics')
        limit 1
    ) as blocked
        on true
    where notification.receiver_id = history.receiver_id
        and notification.created_at >= history.since
    order by notification.id desc
$$;
comment on function notify_worker.history is 'Lists a receiver''s notifications, newest first, each with its state and the reason for it.';
