-- Returns the version of the schema.
create or replace function notify_worker.installed_version()
returns text
language sql
stable
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select version_num from schema_version
$$;
comment on function notify_worker.installed_version is 'Returns the version of the schema.';
