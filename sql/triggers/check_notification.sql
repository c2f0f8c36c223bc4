-- Refuses a notification in its own transaction only for what its row alone shows, by a rule with a name (check_violation,
-- constraint_name). The worker handles everything else, so that it never fails the business transaction.
-- One plpgsql trigger and no CHECKs: stored expressions are planned anew for every statement, this one once a session.
-- Each rule needs a hint below, since raise takes no null; and a message, unless its column has one of a few short values.
create or replace function notify_worker.check_notification()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    broken_rule text := case
        when num_nonnulls(new.receiver_id, new.address) <> 1 or (new.kind is null) <> (new.address is null) then 'notifications_one_target'
        when new.kind not in ('token', 'fid', 'topic', 'condition') then 'notifications_kind'
        when num_nonnulls(new.campaign, new.title, new.body, new.data, new.message) = 0 then 'notifications_content'
        when new.priority not in ('high', 'normal') then 'notifications_priority'
        when new.on_unknown is null or new.on_unknown not in ('resend', 'hold') then 'notifications_on_unknown'
        when octet_length(new.event_id) > 512 then 'notifications_event_id'
        when octet_length(new.receiver_id) > 512 or octet_length(new.address) > 2048 then 'notifications_whom'
        when new.project is null or octet_length(new.project) > 512 then 'notifications_project'
        when new.expires_at <= new.send_at then 'notifications_expire_after_sending'
        when jsonb_typeof(new.params) <> 'object' then 'notifications_params'
        when jsonb_typeof(new.message) <> 'object' then 'notifications_message'
        when new.state is null
            or new.state not in ('pending', 'sent', 'failed', 'expired', 'cancelled', 'unreachable', 'held') then 'notifications_state'
        when jsonb_typeof(new.data) <> 'object'
            or jsonb_path_exists(new.data, 'strict $.* ? (@.type() != "string")') then 'notifications_data'
        when jsonb_path_exists(
            new.data,
            '$.keyvalue().key ? (@ == "from" || @ == "message_type" || @ == "notification" || @ == "notification_id"
                || @ starts with "google" || @ starts with "gcm")'
        ) then 'notifications_data_keys'
    end;
    broken_column text;     -- its name ends its rule's name
begin
    if broken_rule is not null then
        broken_column := replace(broken_rule, 'notifications_', '');
        raise exception using
            errcode = 'check_violation',
            message = case broken_rule
                when 'notifications_one_target' then 'a notification needs either a receiver_id, or a kind and an address'
                when 'notifications_content' then 'a notification has no content'
                when 'notifications_event_id' then format('an event_id of %s bytes is too long', octet_length(new.event_id))
                when 'notifications_whom' then 'a receiver_id of more than 512 bytes, or an address of more than 2048, is too long'
                when 'notifications_project' then 'the project of a notification is null, or longer than 512 bytes'
                when 'notifications_expire_after_sending' then 'the expires_at of a notification is not after its send_at'
                when 'notifications_params' then format('the params of a notification are a JSON %s, not an object', jsonb_typeof(new.params))
                when 'notifications_message' then format('the message of a notification is a JSON %s, not an object', jsonb_typeof(new.message))
                when 'notifications_data' then 'the data of a notification is not an object of strings'
                when 'notifications_data_keys' then 'the data of a notification has a reserved key'
                else format('the %s of a notification can''t be "%s"', broken_column, left(to_jsonb(new) ->> broken_column, 40))
            end,
            hint = case broken_rule
                when 'notifications_one_target' then 'Give receiver_id alone, or kind and address without receiver_id.'
                when 'notifications_kind' then 'Use token, fid, topic or condition.'
                when 'notifications_content' then 'Give a campaign, or at least one of title, body, data and message.'
                when 'notifications_priority' then 'Use high or normal; null is FCM''s own default.'
                when 'notifications_on_unknown' then 'Use resend (the default) or hold.'
                when 'notifications_event_id' then 'Use at most 512 bytes: name the event, don''t describe it.'
                when 'notifications_whom' then 'receiver_id is the application''s own user id; an address is what Firebase gave the device.'
                when 'notifications_project' then 'Leave it out: it is "default".'
                when 'notifications_expire_after_sending' then 'expires_at has to be later than send_at.'
                when 'notifications_params' then 'Give an object: {"order_id": 42}.'
                when 'notifications_message' then 'Give an object with fields of FCM''s message: {"android": {"ttl": "60s"}}.'
                when 'notifications_state' then 'Leave it out: it is pending.'
                when 'notifications_data' then 'Give an object whose values are strings, as FCM wants it: {"order_id": "42"}.'
                when 'notifications_data_keys' then 'FCM reserves from, message_type, notification, google… and gcm…; the worker adds notification_id.'
            end,
            constraint = broken_rule,
            schema = tg_table_schema,
            table = tg_table_name;
    end if;

    -- Only where it differs from the default: writing a field costs more than all of the above.
    if new.priority = 'high' then
        new.lane := 0;
    end if;
    if new.send_at is not null then
        new.due_at := greatest(new.send_at, now());     -- a send_at in the past gains no place in the queue
    end if;
    return new;
end
$$;
