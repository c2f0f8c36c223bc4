-- Refuse what is no device, no campaign, or no place of a key, as the constraints of the table would, and by their names; but an
-- error of theirs has a DETAIL with the whole row, address and all, and it stands in the logs of the server and of whoever asked.
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
    rule text;
    what text;
begin
    if missing is not null then
        raise exception using
            errcode = 'not_null_violation',
            message = format('the %s of a device is missing', missing),
            column = missing,
            schema = tg_table_schema,
            table = tg_table_name;
    elsif new.kind not in ('token', 'fid') then
        rule := 'devices_kind';
        what := format('the kind of a device can''t be "%s": there are token and fid', left(new.kind, 40));
    elsif new.platform not in ('android', 'ios', 'web') then
        rule := 'devices_platform';
        what := format('the platform of a device can''t be "%s": there are android, ios and web', left(new.platform, 40));
    end if;
    if rule is not null then
        raise exception using
            errcode = 'check_violation',
            message = what,
            constraint = rule,
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
            message = 'the credentials of a project are a place, and never the key itself',
            hint = 'file:PATH of a service-account file, or env:NAME of a variable that holds its JSON. A key that was pasted here is better replaced.',
            constraint = 'projects_credentials_are_a_place',
            schema = tg_table_schema,
            table = tg_table_name;
    end if;
    return new;
end
$$;
