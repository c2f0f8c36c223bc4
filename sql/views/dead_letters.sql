-- Deliveries that were given up, and notifications that failed before they had any. They are kept and can be retried. An
-- address that FCM calls unregistered is not a dead letter: nobody is there any more.
create or replace view notify_worker.dead_letters as
select
    delivery.id as delivery_id,
    notification.id as notification_id,
    notification.event_id,
    notification.receiver_id,
    notification.campaign,
    notification.project,
    delivery.attempts,
    delivery.last_error_code as error_code,
    delivery.last_error as error,
    delivery.settled_at as failed_at
from notify_worker.stored_deliveries as delivery
join notify_worker.notifications as notification
    on notification.id = delivery.notification_id
where delivery.state = 'failed'
    and delivery.last_verdict is distinct from 'unregistered'
union all
select
    null,
    id,
    event_id,
    receiver_id,
    campaign,
    project,
    0,
    null,
    settled_reason,
    settled_at
from notify_worker.notifications
where settled_reason is not null
    and state = 'failed';

comment on view notify_worker.dead_letters is 'Deliveries that were given up. They are kept and can be retried.';
comment on column notify_worker.dead_letters.delivery_id is 'Null: the notification failed before it had deliveries.';
