"""Our tables: what others write, what the worker keeps, and the mark that says that a worker is awake."""

from notify_worker.database.schema import run

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
    constraint projects_retry_grows
        check (interval '0' < first_retry_after and first_retry_after <= longest_retry_after and longest_retry_after <= '1 year')
);
insert into notify_worker.projects (name) values ('default');

comment on table notify_worker.projects is 'One row per Firebase project: credentials, rate limit and retry policy.';
comment on column notify_worker.projects.name is 'The key.';
comment on column notify_worker.projects.firebase_project_id is 'The project ID in FCM''s URL. Null: the project that the credentials name.';
comment on column notify_worker.projects.credentials is 'file:PATH, or env:NAME of a variable that holds the JSON; never the key itself. Null: Google''s default chain.';
comment on column notify_worker.projects.sender is 'fcm, console, or the name of a sender from another package.';
comment on column notify_worker.projects.max_per_second is 'The rate of all workers together. Null: 10,000, FCM''s default quota.';
comment on column notify_worker.projects.max_attempts is 'A delivery is given up after so many attempts that count.';
comment on column notify_worker.projects.first_retry_after is 'The wait after the first failed attempt; it doubles with each. FCM asks for 10 s or more.';
comment on column notify_worker.projects.longest_retry_after is 'The longest wait between two attempts.';
comment on column notify_worker.projects.expires_after is 'How long a notification without expires_at is worth sending.';
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

comment on table notify_worker.campaigns is 'Named content, with {placeholders} that a notification''s params fill.';
comment on column notify_worker.campaigns.name is 'The key.';
comment on column notify_worker.campaigns.title is 'May have {placeholders}.';
comment on column notify_worker.campaigns.body is 'May have {placeholders}.';
comment on column notify_worker.campaigns.image is 'A URL; may have {placeholders}.';
comment on column notify_worker.campaigns.data is 'What the app receives: an object, string to string.';
comment on column notify_worker.campaigns.message is 'Fields of FCM''s message to merge in: android, apns, webpush, fcm_options.';
comment on column notify_worker.campaigns.retired_at is 'From then on its notifications end as cancelled when they come due.';

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
    retired_reason text,
    -- The device that replaced it, and gets its waiting deliveries.
    replaced_by bigint,
    constraint devices_address_once unique (project, kind, address)
);
create index devices_live_idx
    on notify_worker.devices (receiver_id, project)
    where retired_at is null;

comment on table notify_worker.devices is 'The devices of receivers. An address belongs to the receiver that registered it last.';
comment on column notify_worker.devices.receiver_id is 'The application''s own user id.';
comment on column notify_worker.devices.kind is 'token or fid.';
comment on column notify_worker.devices.platform is 'android, ios, web, or null.';
comment on column notify_worker.devices.registered_at is 'When it was last registered.';
comment on column notify_worker.devices.seen_at is 'When it was last registered or sent to.';
comment on column notify_worker.devices.retired_at is 'From then on nothing is sent to it. Registering it again clears this.';
comment on column notify_worker.devices.retired_reason is 'Why it was retired.';

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
    -- The only clock: first send, schedule, backoff and lease all move it.
    due_at timestamptz not null default now(),
    -- 0: priority high. 1: the rest.
    lane smallint not null default 1,
    -- When its deliveries were created, one per live device.
    fanned_out_at timestamptz,
    -- The token of the claim: only its holder changes the deliveries.
    lease uuid,
    -- The id of the worker that claimed it.
    leased_by bigint,
    -- When it was last claimed; its deliveries that were due by then belong to that claim.
    leased_at timestamptz,
    -- When a call cancelled it; deliveries in flight at that moment are still finished.
    cancelled_at timestamptz,
    -- When a call last made it due again.
    retried_at timestamptz,
    settled_at timestamptz,
    -- Why it ended, if it ended without deliveries.
    settled_reason text,
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

comment on table notify_worker.notifications is 'The outbox. INSERT a row in your own transaction to send a push notification, once, to a receiver or an address.';
comment on column notify_worker.notifications.id is 'The notification''s number.';
comment on column notify_worker.notifications.event_id is 'An event that is inserted twice is sent once. Null: not deduplicated. At most 512 bytes.';
comment on column notify_worker.notifications.receiver_id is 'Sent to every live device of this receiver; or else give kind and address.';
comment on column notify_worker.notifications.kind is 'token, fid, topic or condition.';
comment on column notify_worker.notifications.address is 'The token, the Firebase installation ID, the topic''s name or the condition.';
comment on column notify_worker.notifications.campaign is 'Gives title, body, image, data and message where the row has none of its own.';
comment on column notify_worker.notifications.title is 'Sent as it is; wins over the campaign''s.';
comment on column notify_worker.notifications.body is 'Sent as it is; wins over the campaign''s.';
comment on column notify_worker.notifications.image is 'A URL, sent as it is; wins over the campaign''s.';
comment on column notify_worker.notifications.params is 'An object: the values of the campaign''s {placeholders}.';
comment on column notify_worker.notifications.data is 'What the app receives: an object, string to string.';
comment on column notify_worker.notifications.message is 'Fields of FCM''s message to merge in, last: android, apns, webpush, fcm_options.';
comment on column notify_worker.notifications.priority is 'high, normal, or null: FCM''s own default. high is a lane of its own.';
comment on column notify_worker.notifications.send_at is 'Not before. Null: at once.';
comment on column notify_worker.notifications.expires_at is 'Not after. Null: by the project''s expires_after.';
comment on column notify_worker.notifications.on_unknown is 'If it is unknown whether FCM has the message: resend it, or hold it for a person to decide.';
comment on column notify_worker.notifications.project is 'The name of a row of projects.';
comment on column notify_worker.notifications.traceparent is 'Kept for a later release; nothing reads it yet.';
comment on column notify_worker.notifications.state is 'pending, sent (FCM has accepted it), failed, expired, cancelled, unreachable (no live device), held.';
comment on column notify_worker.notifications.created_at is 'When its transaction began.';
comment on column notify_worker.notifications.settled_at is 'When its state became final.';
"""

TABLES_OF_THE_WORKER = """
-- One row: the prefix of every message's tag, so that no installation replaces another's messages.
create table notify_worker.installation (
    prefix text primary key,
    installed_at timestamptz not null default now()
);
insert into notify_worker.installation (prefix) values (left(gen_random_uuid()::text, 8));

-- Behind the view deliveries: one notification to one address. Only the holder of the notification's lease changes it.
create table notify_worker.stored_deliveries (
    id bigint generated always as identity primary key,
    notification_id bigint not null,
    device_id bigint,
    kind text not null,
    address text not null,
    platform text,
    state text not null default 'pending'
        constraint stored_deliveries_state check (state in ('pending', 'sent', 'failed', 'expired', 'cancelled', 'held')),
    -- How many attempts count against the project's max_attempts.
    attempts integer not null default 0,
    -- The number of the last attempt in the history that was applied here.
    last_attempt_number integer not null default 0,
    -- When it may be sent. If that is not later than the notification's leased_at, it belongs to that claim.
    due_at timestamptz not null,
    last_verdict text,
    last_error_code text,
    last_error text,
    provider_message_id text,
    -- The lease under which a request was about to start. Set only where on_unknown is hold.
    started_under uuid,
    created_at timestamptz not null default now(),
    -- When a call gave it a fresh budget of attempts, which counts from there.
    retried_at timestamptz,
    settled_at timestamptz
) with (fillfactor = 80);
create unique index stored_deliveries_device_once
    on notify_worker.stored_deliveries (notification_id, device_id);
create index stored_deliveries_dead_letter_idx
    on notify_worker.stored_deliveries (settled_at)
    where state = 'failed' and last_verdict is distinct from 'unregistered';

-- Behind the view attempts: the history, one row an attempt, append-only. One partition a month, by recorded_at.
create table notify_worker.stored_attempts (
    delivery_id bigint not null,
    notification_id bigint not null,
    number integer not null,
    -- Delivery and lease identify an outcome: the same one again is not added.
    lease uuid not null,
    worker text not null,
    started_at timestamptz not null,
    -- Null: the worker was gone before it recorded an outcome; FCM may have the message or not.
    finished_at timestamptz,
    verdict text not null
        constraint stored_attempts_verdict
        check (verdict in ('sent', 'retry', 'failed', 'unregistered', 'unknown', 'paused')),
    -- How many HTTP requests the attempt made.
    requests integer,
    http_status integer,
    error_code text,
    error text,
    -- When the delivery became due again. Null: never.
    retry_at timestamptz,
    provider_message_id text,
    -- Whether it counts against the project's max_attempts. A fault of the project, an outage and a crash do not.
    counts boolean not null default true,
    -- Whether its lease had ended before this outcome was appended.
    late boolean not null default false,
    recorded_at timestamptz not null default now()
) partition by range (recorded_at);
create index stored_attempts_delivery_idx
    on notify_worker.stored_attempts (delivery_id, number);
create index stored_attempts_recorded_idx
    on notify_worker.stored_attempts using brin (recorded_at) with (pages_per_range = 16);

-- Behind the view workers. While a worker lives, its session holds the advisory lock of its id. Ids are never reused.
create table notify_worker.stored_workers (
    id integer generated always as identity primary key,
    name text not null,
    host text not null,
    pid integer not null,
    -- How long its leases are.
    lease_length interval not null,
    -- Whether it holds its lock while it is alive; false behind a pooler in transaction mode.
    holds_lock boolean not null default true,
    started_at timestamptz not null default now(),
    last_heartbeat_at timestamptz not null default now(),
    -- When it was first found stale; the next heartbeat clears it. Its grace period starts here.
    stale_since timestamptz,
    -- When it unregistered, or was rescued.
    ended_at timestamptz
);
create index stored_workers_here_idx
    on notify_worker.stored_workers (id)
    where ended_at is null;

-- One row per worker id, locked while outcomes are recorded under it or its leases are ended. A rescued worker keeps its row, since
-- it may be alive and record late.
create table notify_worker.stored_worker_locks (
    worker_id integer primary key
);

-- Behind the view incidents: pauses and breakers, past and present.
create table notify_worker.stored_incidents (
    id bigint generated always as identity primary key,
    project text not null,
    -- What it blocks: the whole project, iOS and web, topics, or that devices are retired.
    scope text not null default 'project'
        constraint stored_incidents_scope check (scope in ('project', 'apns_web', 'topics', 'devices')),
    by text not null
        constraint stored_incidents_by check (by in ('operator', 'worker')),
    began_at timestamptz not null default now(),
    -- When it ends by itself. Infinity: when an operator resumes the project, or a probe succeeds.
    ends_at timestamptz not null default 'infinity',
    -- When the next probe may be sent; the first that succeeds closes the incident. Null: it is not probed.
    next_probe_at timestamptz,
    -- How many probes were sent, without those that decided nothing. The wait between probes grows with it.
    probe_count integer not null default 0,
    -- When it was closed. Null also where ends_at has passed and nobody has closed it since.
    ended_at timestamptz,
    reason text,
    -- After FCM's quota was exceeded: the rate of all workers together, half of what it was. It doubles each minute.
    project_rate double precision
);
create index stored_incidents_open_idx
    on notify_worker.stored_incidents (project)
    where ended_at is null;
create index stored_incidents_rate_idx
    on notify_worker.stored_incidents (project, id)
    where project_rate is not null;

-- One row per project, only to be locked: workers that change its incidents take turns. Only the worker's role may lock it; other
-- roles may lock rows of projects, and any session may take an advisory lock.
create table notify_worker.stored_project_locks (
    project text primary key
);

-- Until when a worker is awake, in milliseconds since 1970: a statement before that sends no wake-up. Only workers set it. A crash
-- of the server resets it, and until a worker sets it again every statement sends a wake-up.
create unlogged sequence notify_worker.awake_until;
"""


def upgrade() -> None:
    run(TABLES_THAT_OTHERS_WRITE)
    run(TABLES_OF_THE_WORKER)
