-- Says which version of the schema this is.
create or replace function notify_worker.installed_version()
returns text
language sql
stable
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select version_num from schema_version
$$;
comment on function notify_worker.installed_version is 'Says which version of the schema this is.';
