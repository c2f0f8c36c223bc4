-- Tells what happened to a notification: one line per thing that happened, in words, in its order, and last how it stands.
create or replace function notify_worker.explain(notification_id bigint)
returns table (at timestamptz, what text)
language sql
stable
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    with notification as (
        select * from notifications where id = explain.notification_id
    ), delivery as (
        select
            stored.*,
            format('delivery %s (%s …%s)', stored.id, coalesce(stored.platform, stored.kind), right(stored.address, 6)) as name
        from stored_deliveries as stored
        where stored.notification_id = explain.notification_id
    )
    select line.at, line.what
    from (
        select
            created_at as at,
            0 as rank,
            format(
                'notification %s%s was inserted for %s',
                id,
                coalesce(' (event ' || event_id || ')', ''),
                coalesce('receiver ' || receiver_id, format('the %s …%s', kind, right(address, 6)))
            ) || coalesce(', to be sent at ' || send_at, '') as what
        from notification
        union all
        select created_at, 1, name || ' was made' from delivery
        union all
        select
            coalesce(attempt.finished_at, attempt.recorded_at),
            2,
            format('%s: attempt %s by %s came to %s', delivery.name, attempt.number, attempt.worker, attempt.verdict)
                || coalesce(': ' || attempt.error, '')
                || case when attempt.verdict = 'sent' then ': FCM has accepted it' || coalesce(' as ' || attempt.provider_message_id, '') else '' end
                || coalesce(case when attempt.verdict <> 'paused' then ', to be tried again at ' || attempt.retry_at end, '')
                || case when attempt.finished_at is not null and not attempt.counts and attempt.verdict <> 'paused' then ' (not counted)' else '' end
                || case when attempt.late then ' (late: its lease had been taken over)' else '' end
        from delivery
        join stored_attempts as attempt
            on attempt.delivery_id = delivery.id
        union all
        select
            settled_at,
            3,
            name || ' ended ' || state || coalesce(': ' || last_error, '')
        from delivery
        where state in ('failed', 'expired', 'cancelled')
        union all
        select cancelled_at, 3, 'it was cancelled by a call' from notification where cancelled_at is not null
        union all
        select retried_at, 3, 'it was put back in line by a call' from notification where retried_at is not null
        union all
        select
            moment.at,
            3,
            case incident.scope
                when 'project' then format('project %s was ', incident.project)
                when 'apns_web' then format('iOS and web of project %s were ', incident.project)
                else format('topics of project %s were ', incident.project)
            end || moment.what
        from notification
        join incidents as incident
            on incident.project = notification.project
            and incident.scope in ('project', 'apns_web', 'topics')
            and incident.began_at <= coalesce(notification.settled_at, now())
        cross join lateral (
            values
                (
                    incident.began_at,
                    'paused by ' || case incident.by when 'operator' then 'an operator' else 'a worker' end
                        || coalesce(': ' || incident.reason, '')
                ),
                (incident.ended_at, 'resumed')
        ) as moment (at, what)
        where coalesce(incident.ended_at, now()) >= notification.created_at
            and moment.at <= coalesce(notification.settled_at, now())
            and (
                incident.scope = 'project'
                or exists (
                    select from stored_deliveries as blocked
                    where blocked.notification_id = notification.id
                        and scope_covers(incident.scope, blocked)
                )
            )
        union all
        select settled_at, 4, 'it ended ' || state || coalesce(': ' || settled_reason, '')
        from notification
        where settled_at is not null
        union all
        select
            clock_timestamp(),
            5,
            case
                when state = 'held' then 'it is held: nobody can say whether FCM has it, and it is for a person to decide'
                when lease is not null then format('it is pending: a worker (%s) holds it until %s at the latest',
                    coalesce((select name from stored_workers where stored_workers.id = leased_by), leased_by::text), due_at)
                when paused.until is not null then format('it is pending, and its project is paused until %s: %s', paused.until, paused.reason)
                else format('it is pending, due at %s', due_at)
            end
        from notification
        left join lateral describe_pause(notification.project) as paused
            on true
        where settled_at is null
    ) as line
    order by line.at, line.rank
$$;
comment on function notify_worker.explain(bigint) is 'Tells what happened to a notification: one line per thing that happened, in words.';

create or replace function notify_worker.explain(event_id text)
returns table (at timestamptz, what text)
language sql
stable
security definer
set search_path = pg_catalog, notify_worker, pg_temp
as $$
    select line.at, line.what
    from notifications as notification
    cross join lateral explain(notification.id) as line
    where notification.event_id = explain.event_id
$$;
comment on function notify_worker.explain(text) is 'Tells what happened to the notification of an event.';
