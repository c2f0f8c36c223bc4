-- Returns whether an open incident of this scope blocks a delivery. No pinned path, so that it is inlined.
create or replace function notify_worker.scope_covers(scope text, delivery notify_worker.stored_deliveries)
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
