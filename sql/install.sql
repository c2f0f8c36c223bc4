-- How `migrate` replaces what an earlier release installed, and drops what no file defines any more. Everything here is temporary
-- and ends with the transaction or the session. Functions named procrastinate_* and objects of extensions are not ours.
create temporary table installed_before on commit drop as
select
    'routine' as kind, proname as name, oid::regprocedure::text as identity, 'pg_proc'::regclass as catalog, oid, xmin::text as version
from pg_proc
where pronamespace = 'notify_worker'::regnamespace
    and proname not like 'procrastinate\_%'
union all
select 'view', relname, oid::regclass::text, 'pg_class'::regclass, oid, xmin::text
from pg_class
where relnamespace = 'notify_worker'::regnamespace
    and relkind = 'v';

delete from installed_before
using pg_depend
where classid = catalog
    and objid = oid
    and deptype = 'e';

-- The objects from before that were not replaced so far: `create or replace` gives an object's row in the catalog another xmin.
create temporary view outdated as
select installed_before.*
from installed_before
where (catalog, oid, version) in (
    select 'pg_proc'::regclass, oid, xmin::text from pg_proc
    union all
    select 'pg_class'::regclass, oid, xmin::text from pg_class
);

-- Drops the outdated objects of a kind, or only those of one name; if outdated views depend on them, drops all of those first.
-- Fails if objects outside of the schema depend on them: those are not ours to drop.
create or replace procedure pg_temp.drop_outdated(of_kind text, named text default null)
language plpgsql
as $$
declare
    identities text := (
        select string_agg(identity, ', ')
        from outdated
        where kind = of_kind
            and name = coalesce(named, name)
    );
begin
    if identities is not null then
        execute format('drop %s %s', of_kind, identities);
    end if;
exception
    when dependent_objects_still_exist then
        if (of_kind = 'view' and named is null) or not exists (select from outdated where kind = 'view') then
            raise;
        end if;
        call pg_temp.drop_outdated('view');
        call pg_temp.drop_outdated(of_kind, named);
end
$$;

-- Runs a file that creates or replaces the function or view of this name. If Postgres refuses the replacement (another result, other
-- names of parameters, fewer defaults, other columns; a comment on one of two functions), drops the outdated one first.
create or replace procedure pg_temp.install(name text, source text)
language plpgsql
as $$
begin
    execute source;
exception
    when invalid_function_definition or invalid_table_definition or wrong_object_type or ambiguous_function then
        call pg_temp.drop_outdated('view', name);
        call pg_temp.drop_outdated('routine', name);
        execute source;
end
$$;

-- Removes all comments, which would outlive a replacement: the files add theirs again.
do $$
declare
    commented text;
begin
    for commented in
        select case when objsubid = 0 then format('%s %s', kind, identity) else format('column %s.%I', identity, attname) end
        from outdated
        join pg_description
            on classoid = catalog
            and objoid = oid
        left join pg_attribute
            on kind = 'view'
            and attrelid = oid
            and attnum = objsubid
    loop
        execute format('comment on %s is null', commented);
    end loop;
end
$$;
