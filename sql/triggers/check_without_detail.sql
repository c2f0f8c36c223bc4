-- Refuse bad devices, campaigns and credentials as the constraints of the tables would, and by their names. But an error from a
-- constraint has a DETAIL with the whole row, address included, which ends up in the logs of the server and the caller.
create or replace function notify_worker.check_device()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    missing text := case
        when new.receiver_id is null then 'receiver_id'
        when new.kind is null then 'kind'
        when new.address is null then 'address'
        when new.project is null then 'project'
    end;
    wrong text := case
        when new.kind not in ('token', 'fid') then 'kind'
        when new.platform not in ('android', 'ios', 'web') then 'platform'
    end;
begin
    if missing is not null then
        raise exception using
            errcode = 'not_null_violation',
            message = format('the %s of a device is missing', missing),
            column = missing,
            schema = tg_table_schema,
            table = tg_table_name;
    elsif wrong is not null then
        raise exception using
            errcode = 'check_violation',
            message = format('the %s of a device can''t be "%s"', wrong, left(to_jsonb(new) ->> wrong, 40)),
            hint = case wrong when 'kind' then 'Use token or fid.' else 'Use android, ios or web.' end,
            constraint = 'devices_' || wrong,
            schema = tg_table_schema,
            table = tg_table_name;
    end if;
    return new;
end
$$;

create or replace function notify_worker.check_campaign()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    wrong text := case
        when jsonb_typeof(new.data) <> 'object' then 'data'
        when jsonb_typeof(new.message) <> 'object' then 'message'
    end;
begin
    if wrong is not null then
        raise exception using
            errcode = 'check_violation',
            message = format('the %s of a campaign has to be an object', wrong),
            constraint = format('campaigns_%s_is_an_object', wrong),
            schema = tg_table_schema,
            table = tg_table_name;
    end if;
    return new;
end
$$;

create or replace function notify_worker.check_credentials()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if new.credentials !~ '^(file:|env:)' then
        raise exception using
            errcode = 'check_violation',
            message = 'the credentials of a project have to name a place, not be the key itself',
            hint = 'Use file:PATH of a service-account file, or env:NAME of a variable with its JSON. Replace a key that was pasted here.',
            constraint = 'projects_credentials_are_a_place',
            schema = tg_table_schema,
            table = tg_table_name;
    end if;
    return new;
end
$$;
