-- Our tables, sequences and indexes after all revisions, generated for people to read by `python -m tests.support.schema_sql`.
-- `notify-worker migrate` makes them by the revisions in alembic/versions. Nothing is installed from here.

CREATE SCHEMA notify_worker;


CREATE TABLE notify_worker.notifications (
    id bigint NOT NULL,
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
    send_at timestamp with time zone,
    expires_at timestamp with time zone,
    on_unknown text DEFAULT 'resend'::text NOT NULL,
    project text DEFAULT 'default'::text NOT NULL,
    traceparent text,
    state text DEFAULT 'pending'::text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    due_at timestamp with time zone DEFAULT now() NOT NULL,
    lane smallint DEFAULT 1 NOT NULL,
    expanded_at timestamp with time zone,
    lease uuid,
    leased_by bigint,
    leased_at timestamp with time zone,
    cancelled_at timestamp with time zone,
    retried_at timestamp with time zone,
    settled_at timestamp with time zone,
    settled_because text
);
COMMENT ON TABLE notify_worker.notifications IS 'The outbox. INSERT a row in your own transaction to send a push notification, once, to a receiver or an address.';
COMMENT ON COLUMN notify_worker.notifications.id IS 'Its number.';
COMMENT ON COLUMN notify_worker.notifications.event_id IS 'The same event published twice is sent once. Null: not deduplicated. At most 512 bytes.';
COMMENT ON COLUMN notify_worker.notifications.receiver_id IS 'Sent to every live device of this receiver; or else give kind and address.';
COMMENT ON COLUMN notify_worker.notifications.kind IS 'token, fid, topic or condition.';
COMMENT ON COLUMN notify_worker.notifications.address IS 'The token, the Firebase installation ID, the topic''s name or the condition.';
COMMENT ON COLUMN notify_worker.notifications.campaign IS 'Its title, body, image, data and message are used where the row has none of its own.';
COMMENT ON COLUMN notify_worker.notifications.title IS 'Sent as it is; wins over the campaign''s.';
COMMENT ON COLUMN notify_worker.notifications.body IS 'Sent as it is; wins over the campaign''s.';
COMMENT ON COLUMN notify_worker.notifications.image IS 'A URL, sent as it is; wins over the campaign''s.';
COMMENT ON COLUMN notify_worker.notifications.params IS 'An object: the values of the campaign''s {placeholders}.';
COMMENT ON COLUMN notify_worker.notifications.data IS 'What the app receives: an object, string to string.';
COMMENT ON COLUMN notify_worker.notifications.message IS 'Fields of FCM''s message to merge in, last: android, apns, webpush, fcm_options.';
COMMENT ON COLUMN notify_worker.notifications.priority IS 'high, normal, or null: FCM''s own default. high is a lane of its own.';
COMMENT ON COLUMN notify_worker.notifications.send_at IS 'Not before. Null: at once.';
COMMENT ON COLUMN notify_worker.notifications.expires_at IS 'Not after. Null: by the project''s expires_after.';
COMMENT ON COLUMN notify_worker.notifications.on_unknown IS 'If nobody can say whether FCM has the message: resend it, or hold it for a person to decide.';
COMMENT ON COLUMN notify_worker.notifications.project IS 'The name of a row of projects.';
COMMENT ON COLUMN notify_worker.notifications.traceparent IS 'Kept for a later release; nothing reads it yet.';
COMMENT ON COLUMN notify_worker.notifications.state IS 'pending, sent (FCM has accepted it), failed, expired, cancelled, unreachable (no live device), held.';
COMMENT ON COLUMN notify_worker.notifications.created_at IS 'When its transaction began.';
COMMENT ON COLUMN notify_worker.notifications.settled_at IS 'When it ended.';

CREATE TABLE notify_worker.stored_incidents (
    id bigint NOT NULL,
    project text NOT NULL,
    scope text DEFAULT 'project'::text NOT NULL,
    by text NOT NULL,
    began_at timestamp with time zone DEFAULT now() NOT NULL,
    ends_at timestamp with time zone DEFAULT 'infinity'::timestamp with time zone NOT NULL,
    next_probe_at timestamp with time zone,
    probe_count integer DEFAULT 0 NOT NULL,
    ended_at timestamp with time zone,
    reason text,
    project_rate double precision,
    CONSTRAINT stored_incidents_by CHECK ((by = ANY (ARRAY['operator'::text, 'worker'::text]))),
    CONSTRAINT stored_incidents_scope CHECK ((scope = ANY (ARRAY['project'::text, 'apns_web'::text, 'topics'::text, 'devices'::text])))
);

CREATE TABLE notify_worker.projects (
    name text NOT NULL,
    firebase_project_id text,
    credentials text,
    sender text DEFAULT 'fcm'::text NOT NULL,
    max_per_second integer,
    max_attempts integer DEFAULT 10 NOT NULL,
    first_retry_after interval DEFAULT '00:00:10'::interval NOT NULL,
    longest_retry_after interval DEFAULT '00:15:00'::interval NOT NULL,
    expires_after interval DEFAULT '1 day'::interval NOT NULL,
    stale_after interval DEFAULT '270 days'::interval NOT NULL,
    CONSTRAINT projects_credentials_are_a_place CHECK ((credentials ~ '^(file:|env:)'::text)),
    CONSTRAINT projects_expires_after_is_a_time CHECK (((expires_after >= '00:00:00'::interval) AND (expires_after <= '100 years'::interval))),
    CONSTRAINT projects_max_attempts_is_positive CHECK ((max_attempts > 0)),
    CONSTRAINT projects_max_per_second_is_positive CHECK ((max_per_second > 0)),
    CONSTRAINT projects_retry_grows CHECK ((('00:00:00'::interval < first_retry_after) AND (first_retry_after <= longest_retry_after) AND (longest_retry_after <= '1 year'::interval))),
    CONSTRAINT projects_stale_after_is_a_time CHECK (((stale_after >= '00:00:00'::interval) AND (stale_after <= '100 years'::interval)))
);
COMMENT ON TABLE notify_worker.projects IS 'One row a Firebase project: credentials, quota, retry policy and pauses.';
COMMENT ON COLUMN notify_worker.projects.name IS 'The key.';
COMMENT ON COLUMN notify_worker.projects.firebase_project_id IS 'What stands in FCM''s URL; null: the project that the credentials name.';
COMMENT ON COLUMN notify_worker.projects.credentials IS 'file:PATH, or env:NAME of a variable that holds the JSON; never the key itself. Null: Google''s default chain.';
COMMENT ON COLUMN notify_worker.projects.sender IS 'fcm, console, or a sender that a package brings.';
COMMENT ON COLUMN notify_worker.projects.max_per_second IS 'The rate of all workers together. Null: 10,000, FCM''s default quota.';
COMMENT ON COLUMN notify_worker.projects.max_attempts IS 'How many attempts of a delivery count before it is given up.';
COMMENT ON COLUMN notify_worker.projects.first_retry_after IS 'The wait after the first attempt that failed; it doubles from there. FCM asks for 10 s or more.';
COMMENT ON COLUMN notify_worker.projects.longest_retry_after IS 'The wait grows no further than this.';
COMMENT ON COLUMN notify_worker.projects.expires_after IS 'How long a notification that names no expires_at stays worth sending.';
COMMENT ON COLUMN notify_worker.projects.stale_after IS 'A device unseen for longer is not sent to; FCM drops Android registrations after 270 days.';

CREATE TABLE notify_worker.stored_deliveries (
    id bigint NOT NULL,
    notification_id bigint NOT NULL,
    device_id bigint,
    kind text NOT NULL,
    address text NOT NULL,
    platform text,
    state text DEFAULT 'pending'::text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    tries integer DEFAULT 0 NOT NULL,
    due_at timestamp with time zone NOT NULL,
    last_verdict text,
    last_error_code text,
    last_error text,
    sent_as text,
    marked_by uuid,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    retried_at timestamp with time zone,
    settled_at timestamp with time zone,
    CONSTRAINT stored_deliveries_state CHECK ((state = ANY (ARRAY['pending'::text, 'sent'::text, 'failed'::text, 'expired'::text, 'cancelled'::text, 'held'::text])))
)
WITH (fillfactor='80');

CREATE TABLE notify_worker.campaigns (
    name text NOT NULL,
    title text,
    body text,
    image text,
    data jsonb,
    message jsonb,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    retired_at timestamp with time zone,
    CONSTRAINT campaigns_data_is_an_object CHECK ((jsonb_typeof(data) = 'object'::text)),
    CONSTRAINT campaigns_message_is_an_object CHECK ((jsonb_typeof(message) = 'object'::text))
);
COMMENT ON TABLE notify_worker.campaigns IS 'Named content, with {placeholders} that a notification''s params fill.';
COMMENT ON COLUMN notify_worker.campaigns.name IS 'The key.';
COMMENT ON COLUMN notify_worker.campaigns.title IS 'May have {placeholders}.';
COMMENT ON COLUMN notify_worker.campaigns.body IS 'May have {placeholders}.';
COMMENT ON COLUMN notify_worker.campaigns.image IS 'A URL; may have {placeholders}.';
COMMENT ON COLUMN notify_worker.campaigns.data IS 'What the app receives: an object, string to string.';
COMMENT ON COLUMN notify_worker.campaigns.message IS 'Fields of FCM''s message to merge in: android, apns, webpush, fcm_options.';
COMMENT ON COLUMN notify_worker.campaigns.retired_at IS 'Since then nothing of it is sent: what comes due ends cancelled.';

CREATE TABLE notify_worker.stored_attempts (
    delivery_id bigint NOT NULL,
    notification_id bigint NOT NULL,
    number integer NOT NULL,
    lease uuid NOT NULL,
    worker text NOT NULL,
    started_at timestamp with time zone NOT NULL,
    finished_at timestamp with time zone,
    verdict text NOT NULL,
    requests integer,
    http_status integer,
    error_code text,
    error text,
    retry_at timestamp with time zone,
    sent_as text,
    counts boolean DEFAULT true NOT NULL,
    late boolean DEFAULT false NOT NULL,
    recorded_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT stored_attempts_verdict CHECK ((verdict = ANY (ARRAY['sent'::text, 'retry'::text, 'failed'::text, 'unregistered'::text, 'unknown'::text, 'paused'::text])))
)
PARTITION BY RANGE (recorded_at);

CREATE TABLE notify_worker.devices (
    id bigint NOT NULL,
    receiver_id text NOT NULL,
    kind text NOT NULL,
    address text NOT NULL,
    platform text,
    project text DEFAULT 'default'::text NOT NULL,
    registered_at timestamp with time zone DEFAULT now() NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL,
    retired_at timestamp with time zone,
    retired_because text,
    replaced_by bigint,
    CONSTRAINT devices_kind CHECK ((kind = ANY (ARRAY['token'::text, 'fid'::text]))),
    CONSTRAINT devices_platform CHECK ((platform = ANY (ARRAY['android'::text, 'ios'::text, 'web'::text])))
);
COMMENT ON TABLE notify_worker.devices IS 'Where a receiver can be reached. An address belongs to whoever registered it last.';
COMMENT ON COLUMN notify_worker.devices.receiver_id IS 'The application''s own user id.';
COMMENT ON COLUMN notify_worker.devices.kind IS 'token or fid.';
COMMENT ON COLUMN notify_worker.devices.platform IS 'android, ios, web, or null.';
COMMENT ON COLUMN notify_worker.devices.registered_at IS 'When it was last registered.';
COMMENT ON COLUMN notify_worker.devices.seen_at IS 'When it was last registered or sent to.';
COMMENT ON COLUMN notify_worker.devices.retired_at IS 'Since then nothing is sent here. A tombstone; registering again clears it.';
COMMENT ON COLUMN notify_worker.devices.retired_because IS 'Why it was retired.';

CREATE TABLE notify_worker.installation (
    digits text NOT NULL,
    installed_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE notify_worker.stored_workers (
    id integer NOT NULL,
    name text NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    lease_length interval NOT NULL,
    locks boolean DEFAULT true NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_at timestamp with time zone
);

CREATE TABLE notify_worker.stored_allowances (
    project text NOT NULL,
    worker_id integer NOT NULL,
    left_over double precision NOT NULL,
    climbed double precision NOT NULL,
    spent_at timestamp with time zone NOT NULL
);

CREATE TABLE notify_worker.stored_project_locks (
    project text NOT NULL
);


CREATE UNLOGGED SEQUENCE notify_worker.awake_until
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER TABLE notify_worker.devices ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME notify_worker.devices_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

ALTER TABLE notify_worker.notifications ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME notify_worker.notifications_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

ALTER TABLE notify_worker.stored_deliveries ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME notify_worker.stored_deliveries_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

ALTER TABLE notify_worker.stored_incidents ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME notify_worker.stored_incidents_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

ALTER TABLE notify_worker.stored_workers ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME notify_worker.stored_workers_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


ALTER TABLE ONLY notify_worker.campaigns
    ADD CONSTRAINT campaigns_pkey PRIMARY KEY (name);

ALTER TABLE ONLY notify_worker.devices
    ADD CONSTRAINT devices_address_once UNIQUE (project, kind, address);

ALTER TABLE ONLY notify_worker.devices
    ADD CONSTRAINT devices_pkey PRIMARY KEY (id);

ALTER TABLE ONLY notify_worker.installation
    ADD CONSTRAINT installation_pkey PRIMARY KEY (digits);

ALTER TABLE ONLY notify_worker.notifications
    ADD CONSTRAINT notifications_event_once UNIQUE (event_id);

ALTER TABLE ONLY notify_worker.notifications
    ADD CONSTRAINT notifications_pkey PRIMARY KEY (id);

ALTER TABLE ONLY notify_worker.projects
    ADD CONSTRAINT projects_pkey PRIMARY KEY (name);

ALTER TABLE ONLY notify_worker.stored_allowances
    ADD CONSTRAINT stored_allowances_pkey PRIMARY KEY (project, worker_id);

ALTER TABLE ONLY notify_worker.stored_deliveries
    ADD CONSTRAINT stored_deliveries_pkey PRIMARY KEY (id);

ALTER TABLE ONLY notify_worker.stored_incidents
    ADD CONSTRAINT stored_incidents_pkey PRIMARY KEY (id);

ALTER TABLE ONLY notify_worker.stored_project_locks
    ADD CONSTRAINT stored_project_locks_pkey PRIMARY KEY (project);

ALTER TABLE ONLY notify_worker.stored_workers
    ADD CONSTRAINT stored_workers_pkey PRIMARY KEY (id);


CREATE INDEX devices_live_idx ON notify_worker.devices USING btree (receiver_id, project) WHERE (retired_at IS NULL);

CREATE INDEX notifications_due_idx ON notify_worker.notifications USING btree (project, lane, due_at) WHERE (state = 'pending'::text);

CREATE INDEX notifications_given_up_idx ON notify_worker.notifications USING btree (state, id) WHERE (state = ANY (ARRAY['held'::text, 'failed'::text]));

CREATE INDEX notifications_receiver_idx ON notify_worker.notifications USING btree (receiver_id, id);

CREATE INDEX notifications_settled_idx ON notify_worker.notifications USING btree (settled_at) WHERE (settled_at IS NOT NULL);

CREATE INDEX stored_attempts_delivery_idx ON ONLY notify_worker.stored_attempts USING btree (delivery_id, number);

CREATE INDEX stored_attempts_recorded_idx ON ONLY notify_worker.stored_attempts USING brin (recorded_at) WITH (pages_per_range='16');

CREATE INDEX stored_deliveries_dead_letter_idx ON notify_worker.stored_deliveries USING btree (settled_at) WHERE ((state = 'failed'::text) AND (last_verdict IS DISTINCT FROM 'unregistered'::text));

CREATE UNIQUE INDEX stored_deliveries_device_once ON notify_worker.stored_deliveries USING btree (notification_id, device_id);

CREATE INDEX stored_incidents_open_idx ON notify_worker.stored_incidents USING btree (project) WHERE (ended_at IS NULL);

CREATE INDEX stored_incidents_rate_idx ON notify_worker.stored_incidents USING btree (project, id) WHERE (project_rate IS NOT NULL);

CREATE INDEX stored_workers_here_idx ON notify_worker.stored_workers USING btree (id) WHERE (ended_at IS NULL);
