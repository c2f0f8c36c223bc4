-- The deliveries: one notification to one address.
create or replace view notify_worker.deliveries as
select
    delivery.id,
    delivery.notification_id,
    delivery.device_id,
    delivery.kind,
    right(delivery.address, 6) as address,
    notification.project,
    delivery.state,
    delivery.attempts,
    delivery.due_at,
    delivery.provider_message_id,
    delivery.last_error,
    delivery.created_at,
    delivery.settled_at
from notify_worker.stored_deliveries as delivery
join notify_worker.notifications as notification
    on notification.id = delivery.notification_id;

comment on view notify_worker.deliveries is 'The deliveries: one notification to one address.';
comment on column notify_worker.deliveries.address is 'The last 6 characters of the address.';
comment on column notify_worker.deliveries.state is 'pending, sent (FCM has accepted it), failed, expired, cancelled or held.';
comment on column notify_worker.deliveries.attempts is 'How many attempts count against the project''s max_attempts.';
comment on column notify_worker.deliveries.provider_message_id is 'FCM''s name for the message.';
