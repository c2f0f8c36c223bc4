-- Says whether an incident of this scope stops a delivery. (No pinned path, so that it is inlined.)
create or replace function notify_worker.stops(scope text, delivery notify_worker.stored_deliveries)
returns boolean
language sql
immutable
as $$
    select case scope
        when 'project' then true
        when 'apns_web' then coalesce(delivery.platform in ('ios', 'web'), false)
        when 'topics' then delivery.kind in ('topic', 'condition')
        else false
    end
$$;
comment on function notify_worker.stops is 'Says whether an incident of this scope stops a delivery.';
