-- A notification is refused in its own transaction only for what its row alone shows, by a rule with a name
-- (check_violation, constraint_name); everything else is the worker's affair and never fails an order.
-- One plpgsql trigger and no CHECKs: stored expressions are planned anew for every statement, this once a session.
create or replace function notify_worker.check_notification()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    rule text;
    what text;
    what_to_do text;
begin
    if num_nonnulls(new.receiver_id, new.address) <> 1 or (new.kind is null) <> (new.address is null) then
        rule := 'notifications_one_target';
        what := 'a notification names a receiver_id, or a kind and an address: one of the two, and not both';
        what_to_do := 'Give receiver_id alone, or kind and address without receiver_id.';
    elsif new.kind not in ('token', 'fid', 'topic', 'condition') then
        rule := 'notifications_kind';
        what := format('the kind of a notification''s address can''t be "%s"', left(new.kind, 40));
        what_to_do := 'There are token, fid, topic and condition.';
    elsif num_nonnulls(new.campaign, new.title, new.body, new.data, new.message) = 0 then
        rule := 'notifications_words';
        what := 'a notification says nothing';
        what_to_do := 'Give a campaign, or at least one of title, body, data and message.';
    elsif new.priority not in ('high', 'normal') then
        rule := 'notifications_priority';
        what := format('the priority of a notification can''t be "%s"', left(new.priority, 40));
        what_to_do := 'There are high and normal; null is FCM''s own default.';
    elsif new.on_unknown is null or new.on_unknown not in ('resend', 'hold') then
        rule := 'notifications_on_unknown';
        what := format('on_unknown of a notification can''t be "%s"', left(new.on_unknown, 40));
        what_to_do := 'There are resend (the default) and hold.';
    elsif octet_length(new.event_id) > 512 then
        rule := 'notifications_event_id';
        what := format('an event_id of %s bytes is too long', octet_length(new.event_id));
        what_to_do := 'At most 512 bytes; name the event, don''t describe it.';
    elsif octet_length(new.receiver_id) > 512 or octet_length(new.address) > 2048 then
        rule := 'notifications_whom';
        what := 'a receiver_id of more than 512 bytes, or an address of more than 2048, is too long';
        what_to_do := 'receiver_id is the application''s own user id; an address is what the device was given by Firebase.';
    elsif new.project is null or octet_length(new.project) > 512 then
        rule := 'notifications_project';
        what := 'the project of a notification is null, or longer than 512 bytes';
        what_to_do := 'Leave it out: it is "default".';
    elsif new.expires_at <= new.send_at then
        rule := 'notifications_expire_after_sending';
        what := 'a notification would expire before it is to be sent';
        what_to_do := 'expires_at has to be later than send_at.';
    elsif jsonb_typeof(new.params) <> 'object' then
        rule := 'notifications_params';
        what := format('the params of a notification can''t be %s', jsonb_typeof(new.params));
        what_to_do := 'An object: {"order_id": 42}.';
    elsif jsonb_typeof(new.message) <> 'object' then
        rule := 'notifications_message';
        what := format('the message of a notification can''t be %s', jsonb_typeof(new.message));
        what_to_do := 'An object with fields of FCM''s message: {"android": {"ttl": "60s"}}.';
    elsif new.state is null or new.state not in ('pending', 'sent', 'failed', 'expired', 'cancelled', 'unreachable', 'held') then
        rule := 'notifications_state';
        what := format('the state of a notification can''t be "%s"', left(new.state, 40));
        what_to_do := 'Leave it out: it is pending.';
    elsif new.data is not null then
        if jsonb_typeof(new.data) <> 'object' or jsonb_path_exists(new.data, 'strict $.* ? (@.type() != "string")') then
            rule := 'notifications_data';
            what := 'the data of a notification is not string to string';
            what_to_do := 'An object whose values are strings, as FCM wants it: {"order_id": "42"}.';
        elsif jsonb_path_exists(
            new.data,
            '$.keyvalue().key ? (@ == "from" || @ == "message_type" || @ == "notification" || @ == "notification_id"
                || @ starts with "google" || @ starts with "gcm")'
        ) then
            rule := 'notifications_data_keys';
            what := 'the data of a notification has a key that is reserved';
            what_to_do := 'FCM reserves from, message_type, notification, google… and gcm…; notification_id is put in by the worker.';
        end if;
    end if;

    if rule is not null then
        raise exception using
            errcode = 'check_violation',
            message = what,
            hint = what_to_do,
            constraint = rule,
            schema = tg_table_schema,
            table = tg_table_name;
    end if;

    -- Only where it differs from the default: to write a field costs more than all of the above.
    if new.priority = 'high' then
        new.lane := 0;
    end if;
    if new.send_at is not null then
        new.due_at := greatest(new.send_at, now());     -- one of long ago goes before nobody
    end if;
    return new;
end
$$;
