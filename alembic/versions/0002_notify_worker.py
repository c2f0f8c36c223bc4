"""Our tables: what others write, what the worker keeps, and the mark that says that a worker is awake."""

from notify_worker.schema import run

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# notifications has no CHECK: one costs every statement 2 to 5 µs, since its expression is planned anew each time. The trigger
# check_notification has the rules. For the same reason its partial indexes are few.
TABLES_THAT_OTHERS_WRITE = """
create table notify_worker.projects (
    name text primary key,
    firebase_project_id text,
    credentials text
        constraint projects_credentials_are_a_place check (credentials ~ '^(file:|env:)'),
    sender text not null default 'fcm',
    max_per_second integer
        constraint projects_max_per_second_is_positive check (max_per_second > 0),
    max_attempts integer not null default 10
        constraint projects_max_attempts_is_positive check (max_attempts > 0),
    first_retry_after interval not null default '10 seconds',
    longest_retry_after interval not null default '15 minutes',
    expires_after interval not null default '1 day'
        constraint projects_expires_after_is_a_time check (expires_after between '0' and '100 years'),
    stale_after interval not null default '270 days'
        constraint projects_stale_after_is_a_time check (stale_after between '0' and '100 years'),
    paused_until timestamptz,
    paused_because text,
    constraint projects_retry_grows
        check (interval '0' < first_retry_after and first_retry_after <= longest_retry_after and longest_retry_after <= '1 year')
);
insert into notify_worker.projects (name) values ('default');

comment on table notify_worker.projects is 'A Firebase project each: credentials, quota, retry policy and pauses belong to it.';
comment on column notify_worker.projects.firebase_project_id is 'What stands in FCM''s URL; null: the project that the credentials name.';
comment on column notify_worker.projects.credentials is 'file:PATH, or env:NAME of a variable that holds the JSON; never the key itself. Null: Google''s default chain.';
comment on column notify_worker.projects.max_per_second is 'What all workers together send of it. Null: 10,000, FCM''s default quota.';
comment on column notify_worker.projects.sender is 'What carries its messages: fcm or console.';
comment on column notify_worker.projects.max_attempts is 'How many attempts of a delivery count before it is given up.';
comment on column notify_worker.projects.first_retry_after is 'The wait after the first attempt that failed; it doubles from there. FCM asks for 10 s or more.';
comment on column notify_worker.projects.longest_retry_after is 'The wait grows no further than this.';
comment on column notify_worker.projects.expires_after is 'How long a notification that names no expires_at stays worth sending.';
comment on column notify_worker.projects.paused_until is 'Nothing of it is sent until then; infinity: until resume. The latest of its open incidents.';
comment on column notify_worker.projects.stale_after is 'A device unseen for longer is not sent to; FCM drops Android registrations after 270 days.';

create table notify_worker.campaigns (
    name text primary key,
    title text,
    body text,
    image text,
    data jsonb
        constraint campaigns_data_is_an_object check (jsonb_typeof(data) = 'object'),
    message jsonb
        constraint campaigns_message_is_an_object check (jsonb_typeof(message) = 'object'),
    created_at timestamptz not null default now(),
    retired_at timestamptz
);

comment on table notify_worker.campaigns is 'Named words, with {placeholders} that a notification''s params fill.';
comment on column notify_worker.campaigns.data is 'What the app is given beside the words: string to string.';
comment on column notify_worker.campaigns.message is 'Fields of FCM''s message to merge in: android, apns, webpush, fcm_options.';
comment on column notify_worker.campaigns.retired_at is 'Since when nothing of it is sent: what comes due ends cancelled.';

create table notify_worker.devices (
    id bigint generated always as identity primary key,
    receiver_id text not null,
    kind text not null
        constraint devices_kind check (kind in ('token', 'fid')),
    address text not null,
    platform text
        constraint devices_platform check (platform in ('android', 'ios', 'web')),
    project text not null default 'default',
    registered_at timestamptz not null default now(),
    seen_at timestamptz not null default now(),
    retired_at timestamptz,
    retired_because text,
    replaced_by bigint,
    constraint devices_address_once unique (project, kind, address)
);
create index devices_live_idx
    on notify_worker.devices (receiver_id, project)
    where retired_at is null;

comment on table notify_worker.devices is 'Where a receiver can be reached. An address belongs to whoever registered it last.';
comment on column notify_worker.devices.receiver_id is 'The application''s own user id.';
comment on column notify_worker.devices.registered_at is 'When it was last registered.';
comment on column notify_worker.devices.replaced_by is 'Ours. The device that followed it: what waits for it goes there.';
comment on column notify_worker.devices.seen_at is 'When it was last registered or sent to.';
comment on column notify_worker.devices.retired_at is 'Since when nothing is sent here. A tombstone; registering again clears it.';

create table notify_worker.notifications (
    id bigint generated always as identity primary key,
    event_id text,
    receiver_id text,
    kind text,
    address text,
    campaign text,
    title text,
    body text,
    image text,
    params jsonb,
    data jsonb,
    message jsonb,
    priority text,
    send_at timestamptz,
    expires_at timestamptz,
    on_unknown text not null default 'resend',
    project text not null default 'default',
    traceparent text,
    state text not null default 'pending',
    created_at timestamptz not null default now(),
    due_at timestamptz not null default now(),
    lane smallint not null default 1,
    expanded_at timestamptz,
    lease uuid,
    leased_by bigint,
    leased_at timestamptz,
    cancelled_at timestamptz,
    retried_at timestamptz,
    settled_at timestamptz,
    settled_because text,
    constraint notifications_event_once unique (event_id)
);
create index notifications_due_idx
    on notify_worker.notifications (project, lane, due_at)
    where state = 'pending';
create index notifications_receiver_idx
    on notify_worker.notifications (receiver_id, id);
create index notifications_given_up_idx
    on notify_worker.notifications (state, id)
    where state in ('held', 'failed');
create index notifications_settled_idx
    on notify_worker.notifications (settled_at)
    where settled_at is not null;

comment on table notify_worker.notifications is 'The outbox: a row is the wish to tell a receiver, or an address, something, once. INSERT it in your own transaction.';
comment on column notify_worker.notifications.event_id is 'The same event published twice is sent once. Null: not deduplicated. At most 512 bytes.';
comment on column notify_worker.notifications.receiver_id is 'Who is told, on every live device; or else kind and address.';
comment on column notify_worker.notifications.kind is 'token, fid, topic or condition.';
comment on column notify_worker.notifications.campaign is 'Whose words are used where the row has none of its own.';
comment on column notify_worker.notifications.params is 'What fills the campaign''s {placeholders}.';
comment on column notify_worker.notifications.data is 'What the app is given beside the words: string to string.';
comment on column notify_worker.notifications.message is 'Fields of FCM''s message to merge in, last: android, apns, webpush, fcm_options.';
comment on column notify_worker.notifications.priority is 'high, normal, or null: FCM''s own default. high is a lane of its own.';
comment on column notify_worker.notifications.send_at is 'Not before. Null: at once.';
comment on column notify_worker.notifications.expires_at is 'Not after. Null: by the project''s expires_after.';
comment on column notify_worker.notifications.on_unknown is 'Where nobody can say whether FCM has the message: resend it, or hold it for a person to decide.';
comment on column notify_worker.notifications.state is 'pending, sent (FCM has accepted it), failed, expired, cancelled, unreachable (no live device), held.';
comment on column notify_worker.notifications.due_at is 'Ours. The only clock: first send, schedule, backoff and lease all move it.';
comment on column notify_worker.notifications.lane is 'Ours. 0: priority high. 1: the rest.';
comment on column notify_worker.notifications.expanded_at is 'Ours. Since when it has its deliveries, one per live device.';
comment on column notify_worker.notifications.lease is 'Ours. The token of the claim under which a worker holds it.';
comment on column notify_worker.notifications.leased_by is 'Ours. The id of that worker.';
comment on column notify_worker.notifications.leased_at is 'Ours. When it was last claimed; its deliveries due by then belong to that claim.';
comment on column notify_worker.notifications.cancelled_at is 'Ours. When a call cancelled it; what a worker holds then still ends as it ends.';
comment on column notify_worker.notifications.retried_at is 'Ours. When it was last put back in line by a call.';
comment on column notify_worker.notifications.settled_because is 'Ours. Why it ended where it never came to a delivery.';
"""

TABLES_OF_THE_WORKER = """
create table notify_worker.installation (
    digits text primary key,
    installed_at timestamptz not null default now()
);
insert into notify_worker.installation (digits) values (left(gen_random_uuid()::text, 8));

comment on table notify_worker.installation is 'One row: the eight digits that begin the tag of every message, so that two installations never replace each other''s.';

create table notify_worker.stored_deliveries (
    id bigint generated always as identity primary key,
    notification_id bigint not null,
    device_id bigint,
    kind text not null,
    address text not null,
    platform text,
    state text not null default 'pending'
        constraint stored_deliveries_state check (state in ('pending', 'sent', 'failed', 'expired', 'cancelled', 'held')),
    attempts integer not null default 0,
    tries integer not null default 0,
    due_at timestamptz not null,
    last_verdict text,
    last_error_code text,
    last_error text,
    sent_as text,
    marked_by uuid,
    created_at timestamptz not null default now(),
    retried_at timestamptz,
    settled_at timestamptz
) with (fillfactor = 80);
create unique index stored_deliveries_device_once
    on notify_worker.stored_deliveries (notification_id, device_id);
create index stored_deliveries_dead_letter_idx
    on notify_worker.stored_deliveries (settled_at)
    where state = 'failed' and last_verdict is distinct from 'unregistered';

comment on table notify_worker.stored_deliveries is 'Behind the view deliveries: one notification to one address. Only the holder of the notification''s lease changes it.';
comment on column notify_worker.stored_deliveries.attempts is 'How many attempts count against the project''s max_attempts.';
comment on column notify_worker.stored_deliveries.marked_by is 'The lease under which a request of it was about to begin; only what is on hold when unknown is marked.';
comment on column notify_worker.stored_deliveries.retried_at is 'When a call gave it a fresh budget: attempts counts from there.';
comment on column notify_worker.stored_deliveries.tries is 'How many rows of the history are applied here.';
comment on column notify_worker.stored_deliveries.due_at is 'When it may be sent; by the notification''s leased_at at the latest: it belongs to that claim.';

create table notify_worker.stored_attempts (
    delivery_id bigint not null,
    notification_id bigint not null,
    number integer not null,
    lease uuid not null,
    worker text not null,
    started_at timestamptz not null,
    finished_at timestamptz,
    verdict text not null
        constraint stored_attempts_verdict
        check (verdict in ('sent', 'retry', 'failed', 'unregistered', 'unknown', 'paused')),
    requests integer,
    http_status integer,
    error_code text,
    error text,
    retry_at timestamptz,
    sent_as text,
    counts boolean not null default true,
    late boolean not null default false,
    recorded_at timestamptz not null default now()
) partition by range (recorded_at);
create index stored_attempts_delivery_idx
    on notify_worker.stored_attempts (delivery_id, number);
create index stored_attempts_recorded_idx
    on notify_worker.stored_attempts using brin (recorded_at) with (pages_per_range = 16);

comment on table notify_worker.stored_attempts is 'Behind the view attempts: the history, a row a try, only ever added to. A partition each month, by recorded_at.';
comment on column notify_worker.stored_attempts.lease is 'An outcome is known by its delivery and its lease: the same one again is not added.';
comment on column notify_worker.stored_attempts.finished_at is 'Null: its worker was gone before it could say; the message may never have left.';
comment on column notify_worker.stored_attempts.requests is 'How many HTTP requests the attempt made.';
comment on column notify_worker.stored_attempts.retry_at is 'When the delivery was to be due again. Null: never.';
comment on column notify_worker.stored_attempts.counts is 'Whether it counts against the project''s max_attempts: not what was the project''s fault, or an outage''s, or a crash''s.';
comment on column notify_worker.stored_attempts.late is 'The lease had been taken over before this outcome was appended.';

create table notify_worker.stored_workers (
    id integer generated always as identity primary key,
    name text not null,
    host text not null,
    pid integer not null,
    lease_length interval not null,
    locks boolean not null default true,
    started_at timestamptz not null default now(),
    seen_at timestamptz not null default now(),
    ended_at timestamptz
);
create index stored_workers_here_idx
    on notify_worker.stored_workers (id)
    where ended_at is null;

comment on table notify_worker.stored_workers is 'Behind the view workers. While a worker lives, its session holds the advisory lock whose key is this id, never reused.';
comment on column notify_worker.stored_workers.lease_length is 'How long the leases are that it takes.';
comment on column notify_worker.stored_workers.locks is 'Whether it holds its lock while it lives; not through a pooler that shares sessions.';
comment on column notify_worker.stored_workers.ended_at is 'When it left, or was found dead and its work put back in line.';

create table notify_worker.stored_incidents (
    id bigint generated always as identity primary key,
    project text not null,
    scope text not null default 'project'
        constraint stored_incidents_scope check (scope in ('project', 'apns_web', 'topics', 'devices')),
    by text not null
        constraint stored_incidents_by check (by in ('operator', 'worker')),
    began_at timestamptz not null default now(),
    until timestamptz not null default 'infinity',
    ended_at timestamptz,
    because text,
    probes integer,
    per_second double precision
);
create index stored_incidents_open_idx
    on notify_worker.stored_incidents (project)
    where ended_at is null;
create index stored_incidents_rate_idx
    on notify_worker.stored_incidents (project, id)
    where per_second is not null;

comment on table notify_worker.stored_incidents is 'Behind the view incidents: pauses and breakers, past and present.';
comment on column notify_worker.stored_incidents.scope is 'What of the project it stops: all of it, iOS and web, topics, or the retiring of devices.';
comment on column notify_worker.stored_incidents.until is 'When it ends by itself, or the next probe is made; infinity: when somebody resumes.';
comment on column notify_worker.stored_incidents.probes is 'How many probes have been made; the first that gets through ends it. Null: it ends at its time, or by resume.';
comment on column notify_worker.stored_incidents.per_second is 'After FCM''s quota was exceeded: the rate at which all workers together go on, half of what it was. It doubles each minute.';

create unlogged sequence notify_worker.awake_until;

comment on sequence notify_worker.awake_until is 'Until when a worker is awake, in milliseconds since 1970: a statement before that need not ring. Only workers move it; a crash empties it, which rings.';
"""


def upgrade() -> None:
    run(TABLES_THAT_OTHERS_WRITE)
    run(TABLES_OF_THE_WORKER)
    run(TRIGGERS)


TRIGGERS = """
create function notify_worker.check_notification() returns trigger language plpgsql as 'begin return new; end';
create function notify_worker.check_device() returns trigger language plpgsql as 'begin return new; end';
create function notify_worker.check_campaign() returns trigger language plpgsql as 'begin return new; end';
create function notify_worker.check_credentials() returns trigger language plpgsql as 'begin return new; end';
create function notify_worker.wake() returns trigger language plpgsql as 'begin return null; end';

create trigger check_notification
    before insert on notify_worker.notifications
    for each row execute function notify_worker.check_notification();
create trigger check_device
    before insert or update on notify_worker.devices
    for each row execute function notify_worker.check_device();
create trigger check_campaign
    before insert or update on notify_worker.campaigns
    for each row execute function notify_worker.check_campaign();
create trigger check_credentials
    before insert or update on notify_worker.projects
    for each row execute function notify_worker.check_credentials();
create trigger wake
    after insert on notify_worker.notifications
    for each statement execute function notify_worker.wake();
"""
