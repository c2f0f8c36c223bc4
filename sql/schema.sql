-- The schema notify_worker, as `notify-worker migrate` makes it; nothing is installed from here.
-- Generated for people to read, by `python -m tests.schema_sql`: tables first, then views, functions, triggers.
-- procrastinate's objects are left out.

CREATE SCHEMA notify_worker;


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
    paused_until timestamp with time zone,
    paused_because text,
    CONSTRAINT projects_credentials_are_a_place CHECK ((credentials ~ '^(file:|env:)'::text)),
    CONSTRAINT projects_expires_after_is_a_time CHECK (((expires_after >= '00:00:00'::interval) AND (expires_after <= '100 years'::interval))),
    CONSTRAINT projects_max_attempts_is_positive CHECK ((max_attempts > 0)),
    CONSTRAINT projects_max_per_second_is_positive CHECK ((max_per_second > 0)),
    CONSTRAINT projects_retry_grows CHECK ((('00:00:00'::interval < first_retry_after) AND (first_retry_after <= longest_retry_after) AND (longest_retry_after <= '1 year'::interval))),
    CONSTRAINT projects_stale_after_is_a_time CHECK (((stale_after >= '00:00:00'::interval) AND (stale_after <= '100 years'::interval)))
);
COMMENT ON TABLE notify_worker.projects IS 'A Firebase project each: credentials, quota, retry policy and pauses belong to it.';
COMMENT ON COLUMN notify_worker.projects.firebase_project_id IS 'What stands in FCM''s URL; null: the project that the credentials name.';
COMMENT ON COLUMN notify_worker.projects.credentials IS 'file:PATH, or env:NAME of a variable that holds the JSON; never the key itself. Null: Google''s default chain.';
COMMENT ON COLUMN notify_worker.projects.sender IS 'What carries its messages: fcm or console.';
COMMENT ON COLUMN notify_worker.projects.max_per_second IS 'What all workers together send of it. Null: 10,000, FCM''s default quota.';
COMMENT ON COLUMN notify_worker.projects.max_attempts IS 'How many attempts of a delivery count before it is given up.';
COMMENT ON COLUMN notify_worker.projects.first_retry_after IS 'The wait after the first attempt that failed; it doubles from there. FCM asks for 10 s or more.';
COMMENT ON COLUMN notify_worker.projects.longest_retry_after IS 'The wait grows no further than this.';
COMMENT ON COLUMN notify_worker.projects.expires_after IS 'How long a notification that names no expires_at stays worth sending.';
COMMENT ON COLUMN notify_worker.projects.stale_after IS 'A device unseen for longer is not sent to; FCM drops Android registrations after 270 days.';
COMMENT ON COLUMN notify_worker.projects.paused_until IS 'Nothing of it is sent until then; infinity: until resume. The latest of its open incidents.';

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
COMMENT ON TABLE notify_worker.notifications IS 'The outbox: a row is the wish to tell a receiver, or an address, something, once. INSERT it in your own transaction.';
COMMENT ON COLUMN notify_worker.notifications.event_id IS 'The same event published twice is sent once. Null: not deduplicated. At most 512 bytes.';
COMMENT ON COLUMN notify_worker.notifications.receiver_id IS 'Who is told, on every live device; or else kind and address.';
COMMENT ON COLUMN notify_worker.notifications.kind IS 'token, fid, topic or condition.';
COMMENT ON COLUMN notify_worker.notifications.campaign IS 'Whose words are used where the row has none of its own.';
COMMENT ON COLUMN notify_worker.notifications.params IS 'What fills the campaign''s {placeholders}.';
COMMENT ON COLUMN notify_worker.notifications.data IS 'What the app is given beside the words: string to string.';
COMMENT ON COLUMN notify_worker.notifications.message IS 'Fields of FCM''s message to merge in, last: android, apns, webpush, fcm_options.';
COMMENT ON COLUMN notify_worker.notifications.priority IS 'high, normal, or null: FCM''s own default. high is a lane of its own.';
COMMENT ON COLUMN notify_worker.notifications.send_at IS 'Not before. Null: at once.';
COMMENT ON COLUMN notify_worker.notifications.expires_at IS 'Not after. Null: by the project''s expires_after.';
COMMENT ON COLUMN notify_worker.notifications.on_unknown IS 'Where nobody can say whether FCM has the message: resend it, or hold it for a person to decide.';
COMMENT ON COLUMN notify_worker.notifications.state IS 'pending, sent (FCM has accepted it), failed, expired, cancelled, unreachable (no live device), held.';
COMMENT ON COLUMN notify_worker.notifications.due_at IS 'Ours. The only clock: first send, schedule, backoff and lease all move it.';
COMMENT ON COLUMN notify_worker.notifications.lane IS 'Ours. 0: priority high. 1: the rest.';
COMMENT ON COLUMN notify_worker.notifications.expanded_at IS 'Ours. Since when it has its deliveries, one per live device.';
COMMENT ON COLUMN notify_worker.notifications.lease IS 'Ours. The token of the claim under which a worker holds it.';
COMMENT ON COLUMN notify_worker.notifications.leased_by IS 'Ours. The id of that worker.';
COMMENT ON COLUMN notify_worker.notifications.leased_at IS 'Ours. When it was last claimed; its deliveries due by then belong to that claim.';
COMMENT ON COLUMN notify_worker.notifications.cancelled_at IS 'Ours. When a call cancelled it; what a worker holds then still ends as it ends.';
COMMENT ON COLUMN notify_worker.notifications.retried_at IS 'Ours. When it was last put back in line by a call.';
COMMENT ON COLUMN notify_worker.notifications.settled_because IS 'Ours. Why it ended where it never came to a delivery.';

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
COMMENT ON TABLE notify_worker.stored_deliveries IS 'Behind the view deliveries: one notification to one address. Only the holder of the notification''s lease changes it.';
COMMENT ON COLUMN notify_worker.stored_deliveries.attempts IS 'How many attempts count against the project''s max_attempts.';
COMMENT ON COLUMN notify_worker.stored_deliveries.tries IS 'How many rows of the history are applied here.';
COMMENT ON COLUMN notify_worker.stored_deliveries.due_at IS 'When it may be sent; by the notification''s leased_at at the latest: it belongs to that claim.';
COMMENT ON COLUMN notify_worker.stored_deliveries.marked_by IS 'The lease under which a request of it was about to begin; only what is on hold when unknown is marked.';
COMMENT ON COLUMN notify_worker.stored_deliveries.retried_at IS 'When a call gave it a fresh budget: attempts counts from there.';

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
COMMENT ON TABLE notify_worker.campaigns IS 'Named words, with {placeholders} that a notification''s params fill.';
COMMENT ON COLUMN notify_worker.campaigns.data IS 'What the app is given beside the words: string to string.';
COMMENT ON COLUMN notify_worker.campaigns.message IS 'Fields of FCM''s message to merge in: android, apns, webpush, fcm_options.';
COMMENT ON COLUMN notify_worker.campaigns.retired_at IS 'Since when nothing of it is sent: what comes due ends cancelled.';

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
COMMENT ON TABLE notify_worker.stored_attempts IS 'Behind the view attempts: the history, a row a try, only ever added to. A partition each month, by recorded_at.';
COMMENT ON COLUMN notify_worker.stored_attempts.lease IS 'An outcome is known by its delivery and its lease: the same one again is not added.';
COMMENT ON COLUMN notify_worker.stored_attempts.finished_at IS 'Null: its worker was gone before it could say; the message may never have left.';
COMMENT ON COLUMN notify_worker.stored_attempts.requests IS 'How many HTTP requests the attempt made.';
COMMENT ON COLUMN notify_worker.stored_attempts.retry_at IS 'When the delivery was to be due again. Null: never.';
COMMENT ON COLUMN notify_worker.stored_attempts.counts IS 'Whether it counts against the project''s max_attempts: not what was the project''s fault, or an outage''s, or a crash''s.';
COMMENT ON COLUMN notify_worker.stored_attempts.late IS 'The lease had been taken over before this outcome was appended.';

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
COMMENT ON COLUMN notify_worker.devices.registered_at IS 'When it was last registered.';
COMMENT ON COLUMN notify_worker.devices.seen_at IS 'When it was last registered or sent to.';
COMMENT ON COLUMN notify_worker.devices.retired_at IS 'Since when nothing is sent here. A tombstone; registering again clears it.';
COMMENT ON COLUMN notify_worker.devices.replaced_by IS 'Ours. The device that followed it: what waits for it goes there.';

CREATE TABLE notify_worker.stored_incidents (
    id bigint NOT NULL,
    project text NOT NULL,
    scope text DEFAULT 'project'::text NOT NULL,
    by text NOT NULL,
    began_at timestamp with time zone DEFAULT now() NOT NULL,
    until timestamp with time zone DEFAULT 'infinity'::timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    because text,
    probes integer,
    per_second double precision,
    CONSTRAINT stored_incidents_by CHECK ((by = ANY (ARRAY['operator'::text, 'worker'::text]))),
    CONSTRAINT stored_incidents_scope CHECK ((scope = ANY (ARRAY['project'::text, 'apns_web'::text, 'topics'::text, 'devices'::text])))
);
COMMENT ON TABLE notify_worker.stored_incidents IS 'Behind the view incidents: pauses and breakers, past and present.';
COMMENT ON COLUMN notify_worker.stored_incidents.scope IS 'What of the project it stops: all of it, iOS and web, topics, or the retiring of devices.';
COMMENT ON COLUMN notify_worker.stored_incidents.until IS 'When it ends by itself, or the next probe is made; infinity: when somebody resumes.';
COMMENT ON COLUMN notify_worker.stored_incidents.probes IS 'How many probes have been made; the first that gets through ends it. Null: it ends at its time, or by resume.';
COMMENT ON COLUMN notify_worker.stored_incidents.per_second IS 'After FCM''s quota was exceeded: the rate at which all workers together go on, half of what it was. It doubles each minute.';

CREATE TABLE notify_worker.installation (
    digits text NOT NULL,
    installed_at timestamp with time zone DEFAULT now() NOT NULL
);
COMMENT ON TABLE notify_worker.installation IS 'One row: the eight digits that begin the tag of every message, so that two installations never replace each other''s.';

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
COMMENT ON TABLE notify_worker.stored_workers IS 'Behind the view workers. While a worker lives, its session holds the advisory lock whose key is this id, never reused.';
COMMENT ON COLUMN notify_worker.stored_workers.lease_length IS 'How long the leases are that it takes.';
COMMENT ON COLUMN notify_worker.stored_workers.locks IS 'Whether it holds its lock while it lives; not through a pooler that shares sessions.';
COMMENT ON COLUMN notify_worker.stored_workers.ended_at IS 'When it left, or was found dead and its work put back in line.';


CREATE UNLOGGED SEQUENCE notify_worker.awake_until
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
COMMENT ON SEQUENCE notify_worker.awake_until IS 'Until when a worker is awake, in milliseconds since 1970: a statement before that need not ring. Only workers move it; a crash empties it, which rings.';

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

ALTER TABLE ONLY notify_worker.stored_deliveries
    ADD CONSTRAINT stored_deliveries_pkey PRIMARY KEY (id);

ALTER TABLE ONLY notify_worker.stored_incidents
    ADD CONSTRAINT stored_incidents_pkey PRIMARY KEY (id);

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

CREATE INDEX stored_incidents_rate_idx ON notify_worker.stored_incidents USING btree (project, id) WHERE (per_second IS NOT NULL);

CREATE INDEX stored_workers_here_idx ON notify_worker.stored_workers USING btree (id) WHERE (ended_at IS NULL);


CREATE VIEW notify_worker.attempts AS
 SELECT delivery_id,
    notification_id,
    number,
    worker,
    started_at,
    finished_at,
    verdict,
    requests,
    http_status,
    error_code,
    error,
    retry_at,
    sent_as,
    late
   FROM notify_worker.stored_attempts;
COMMENT ON VIEW notify_worker.attempts IS 'The history: one row a try, only ever added to.';
COMMENT ON COLUMN notify_worker.attempts.started_at IS 'When its first request began; of one that was cut off, when it was claimed.';
COMMENT ON COLUMN notify_worker.attempts.finished_at IS 'Null: its worker was gone before it could say; the message may never have left.';
COMMENT ON COLUMN notify_worker.attempts.verdict IS 'sent, retry, failed, unregistered, unknown (FCM may have it or not) or paused (the project''s fault, counts against nothing).';
COMMENT ON COLUMN notify_worker.attempts.retry_at IS 'When the delivery was to be due again. Null: never.';
COMMENT ON COLUMN notify_worker.attempts.late IS 'The lease had been taken over before this outcome came.';

CREATE VIEW notify_worker.dead_letters AS
 SELECT delivery.id AS delivery_id,
    notification.id AS notification_id,
    notification.event_id,
    notification.receiver_id,
    notification.campaign,
    notification.project,
    delivery.attempts,
    delivery.last_error_code AS error_code,
    delivery.last_error AS error,
    delivery.settled_at AS failed_at
   FROM (notify_worker.stored_deliveries delivery
     JOIN notify_worker.notifications notification ON ((notification.id = delivery.notification_id)))
  WHERE ((delivery.state = 'failed'::text) AND (delivery.last_verdict IS DISTINCT FROM 'unregistered'::text))
UNION ALL
 SELECT NULL::bigint AS delivery_id,
    notifications.id AS notification_id,
    notifications.event_id,
    notifications.receiver_id,
    notifications.campaign,
    notifications.project,
    0 AS attempts,
    NULL::text AS error_code,
    notifications.settled_because AS error,
    notifications.settled_at AS failed_at
   FROM notify_worker.notifications
  WHERE ((notifications.settled_because IS NOT NULL) AND (notifications.state = 'failed'::text));
COMMENT ON VIEW notify_worker.dead_letters IS 'What was given up on; kept, and can be retried.';
COMMENT ON COLUMN notify_worker.dead_letters.delivery_id IS 'Null where it never came to one.';

CREATE VIEW notify_worker.deliveries AS
 SELECT delivery.id,
    delivery.notification_id,
    delivery.device_id,
    delivery.kind,
    "right"(delivery.address, 6) AS address,
    notification.project,
    delivery.state,
    delivery.attempts,
    delivery.due_at,
    delivery.sent_as,
    delivery.last_error,
    delivery.created_at,
    delivery.settled_at
   FROM (notify_worker.stored_deliveries delivery
     JOIN notify_worker.notifications notification ON ((notification.id = delivery.notification_id)));
COMMENT ON VIEW notify_worker.deliveries IS 'One notification to one address, as it stands.';
COMMENT ON COLUMN notify_worker.deliveries.address IS 'Its last 6 characters.';
COMMENT ON COLUMN notify_worker.deliveries.state IS 'pending, sent (FCM has accepted it), failed, expired, cancelled or held.';
COMMENT ON COLUMN notify_worker.deliveries.attempts IS 'How many attempts count against the project''s max_attempts.';
COMMENT ON COLUMN notify_worker.deliveries.sent_as IS 'FCM''s name of the message.';

CREATE VIEW notify_worker.incidents AS
 SELECT project,
    scope,
    by,
    began_at,
    COALESCE(ended_at,
        CASE
            WHEN ((probes IS NULL) AND (until <= now())) THEN until
            ELSE NULL::timestamp with time zone
        END) AS ended_at,
    because
   FROM notify_worker.stored_incidents;
COMMENT ON VIEW notify_worker.incidents IS 'Pauses and breakers, past and present.';
COMMENT ON COLUMN notify_worker.incidents.scope IS 'What of the project it stops: project, apns_web, topics, or devices (their retiring).';
COMMENT ON COLUMN notify_worker.incidents.by IS 'operator or worker.';
COMMENT ON COLUMN notify_worker.incidents.ended_at IS 'Null: it goes on.';

CREATE VIEW notify_worker.ledger AS
 WITH notification AS MATERIALIZED (
         SELECT notifications.id,
            notifications.state,
            notifications.project,
            notifications.due_at,
            notifications.lease,
            notifications.leased_by,
            notifications.leased_at,
            notifications.settled_at,
            notifications.settled_because
           FROM notify_worker.notifications
          WHERE (notifications.state = 'pending'::text)
        UNION ALL
         SELECT notifications.id,
            notifications.state,
            notifications.project,
            notifications.due_at,
            notifications.lease,
            notifications.leased_by,
            notifications.leased_at,
            notifications.settled_at,
            notifications.settled_because
           FROM notify_worker.notifications
          WHERE (notifications.state = 'held'::text)
        UNION ALL
         SELECT notifications.id,
            notifications.state,
            notifications.project,
            notifications.due_at,
            notifications.lease,
            notifications.leased_by,
            notifications.leased_at,
            notifications.settled_at,
            notifications.settled_because
           FROM notify_worker.notifications
          WHERE (notifications.settled_at > (now() - '01:00:00'::interval))
        ), delivery AS MATERIALIZED (
         SELECT stored.id,
            stored.notification_id,
            stored.state,
            stored.attempts,
            stored.settled_at,
            count(*) FILTER (WHERE ((attempt.verdict = 'sent'::text) AND (NOT attempt.late))) AS sent,
            count(*) FILTER (WHERE ((attempt.verdict = 'sent'::text) AND attempt.late)) AS sent_late,
            count(*) FILTER (WHERE (attempt.counts AND (NOT attempt.late) AND (attempt.recorded_at > COALESCE(stored.retried_at, '-infinity'::timestamp with time zone)))) AS counted
           FROM ((notification
             JOIN notify_worker.stored_deliveries stored ON ((stored.notification_id = notification.id)))
             LEFT JOIN notify_worker.stored_attempts attempt ON ((attempt.delivery_id = stored.id)))
          GROUP BY stored.id, stored.notification_id, stored.state, stored.attempts, stored.settled_at
        ), line(what, expected, found) AS (
         SELECT 'deliveries of settled notifications are settled'::text AS "?column?",
            count(*) AS count,
            count(*) FILTER (WHERE (delivery.settled_at IS NOT NULL)) AS count
           FROM (notification
             JOIN delivery ON ((delivery.notification_id = notification.id)))
          WHERE (notification.settled_at IS NOT NULL)
        UNION ALL
         SELECT 'each sent delivery has one sent attempt that settled it'::text,
            count(*) AS count,
            count(*) FILTER (WHERE ((delivery.sent = 1) OR ((delivery.sent = 0) AND (delivery.sent_late > 0)))) AS count
           FROM delivery
          WHERE (delivery.state = 'sent'::text)
        UNION ALL
         SELECT 'each sent attempt settled its delivery'::text,
            count(*) AS count,
            count(*) FILTER (WHERE (delivery.state = 'sent'::text)) AS count
           FROM (notification
             JOIN delivery ON ((delivery.notification_id = notification.id)))
          WHERE ((delivery.sent > 0) AND (notification.lease IS NULL))
        UNION ALL
         SELECT 'attempts of deliveries are rows of the history that count'::text,
            count(*) AS count,
            count(*) FILTER (WHERE (delivery.attempts = delivery.counted)) AS count
           FROM (notification
             JOIN delivery ON ((delivery.notification_id = notification.id)))
          WHERE (notification.lease IS NULL)
        UNION ALL
         SELECT 'nothing is due for longer than a lease and 5 s while nobody claims'::text,
            0,
            count(*) AS count
           FROM notification
          WHERE ((notification.state = 'pending'::text) AND (notification.due_at < ((now() - '00:00:05'::interval) - COALESCE(( SELECT max(stored_workers.lease_length) AS max
                   FROM notify_worker.stored_workers
                  WHERE (stored_workers.ended_at IS NULL)), '00:02:00'::interval))) AND (NOT (notification.project IN ( SELECT projects.name
                   FROM notify_worker.projects
                  WHERE (projects.paused_until > now())
                UNION ALL
                 SELECT incident.project
                   FROM notify_worker.stored_incidents incident
                  WHERE ((incident.scope = 'project'::text) AND (incident.ended_at IS NULL) AND (incident.probes IS NOT NULL))))) AND (NOT (notification.project IN ( SELECT notification_1.project
                   FROM notification notification_1
                  WHERE (notification_1.leased_at > (now() - '00:00:10'::interval))))))
        UNION ALL
         SELECT 'no lease is of a worker that is gone'::text,
            0,
            count(*) AS count
           FROM notification
          WHERE ((notification.state = 'pending'::text) AND (notification.lease IS NOT NULL) AND (NOT (EXISTS ( SELECT
                   FROM notify_worker.stored_workers worker
                  WHERE ((worker.id = notification.leased_by) AND (worker.ended_at IS NULL))))))
        UNION ALL
         SELECT 'each settled notification has deliveries or a reason'::text,
            count(*) AS count,
            count(*) FILTER (WHERE ((notification.settled_because IS NOT NULL) OR (with_deliveries.notification_id IS NOT NULL))) AS count
           FROM (notification
             LEFT JOIN ( SELECT DISTINCT delivery.notification_id
                   FROM delivery) with_deliveries ON ((with_deliveries.notification_id = notification.id)))
          WHERE (notification.settled_at IS NOT NULL)
        )
 SELECT what,
    expected,
    found,
    (expected = found) AS balanced
   FROM line;
COMMENT ON VIEW notify_worker.ledger IS 'What must balance, a line each, from two different sources: of everything unsettled, and of what settled in the last hour.';

CREATE VIEW notify_worker.status AS
 WITH paused AS MATERIALIZED (
         SELECT projects.name AS project
           FROM notify_worker.projects
          WHERE ((projects.paused_until > now()) OR (projects.name IN ( SELECT stored_incidents.project
                   FROM notify_worker.stored_incidents
                  WHERE ((stored_incidents.scope = 'project'::text) AND (stored_incidents.ended_at IS NULL) AND (stored_incidents.probes IS NOT NULL)))))
        ), of_project AS MATERIALIZED (
         SELECT line.project,
            lane.number AS lane
           FROM (notify_worker.projects_in_line() line(project)
             CROSS JOIN ( VALUES ((0)::smallint), ((1)::smallint)) lane(number))
          WHERE (NOT (line.project IN ( SELECT paused.project
                   FROM paused)))
        ), near AS MATERIALIZED (
         SELECT notification.due_at,
            notification.lease,
            notification.leased_by
           FROM (((( SELECT max(stored_workers.lease_length) AS longest
                   FROM notify_worker.stored_workers) workers
             CROSS JOIN notify_worker.projects_in_line() line(project))
             CROSS JOIN ( VALUES ((0)::smallint), ((1)::smallint)) lane(number))
             CROSS JOIN LATERAL (( SELECT notifications.due_at,
                    notifications.lease,
                    notifications.leased_by
                   FROM notify_worker.notifications
                  WHERE ((notifications.state = 'pending'::text) AND (notifications.project = line.project) AND (notifications.lane = lane.number) AND (notifications.due_at <= now()))
                  ORDER BY notifications.due_at
                 LIMIT 100000)
                UNION ALL
                ( SELECT notifications.due_at,
                    notifications.lease,
                    notifications.leased_by
                   FROM notify_worker.notifications
                  WHERE ((notifications.state = 'pending'::text) AND (notifications.project = line.project) AND (notifications.lane = lane.number) AND (notifications.due_at > now()) AND (notifications.due_at <= (now() + workers.longest)))
                  ORDER BY notifications.due_at
                 LIMIT 100000)) notification)
        ), leases AS MATERIALIZED (
         SELECT near.due_at,
            worker.id AS worker_id
           FROM (near
             LEFT JOIN notify_worker.stored_workers worker ON (((worker.id = near.leased_by) AND (worker.ended_at IS NULL))))
          WHERE (near.lease IS NOT NULL)
         LIMIT 100000
        ), due AS MATERIALIZED (
         SELECT
           FROM (of_project
             CROSS JOIN LATERAL ( SELECT
                   FROM notify_worker.notifications
                  WHERE ((notifications.state = 'pending'::text) AND (notifications.project = of_project.project) AND (notifications.lane = of_project.lane) AND (notifications.due_at <= now()))
                 LIMIT 100000) notification)
         LIMIT 100000
        ), oldest AS MATERIALIZED (
         SELECT min(notification.due_at) AS due_at
           FROM (of_project
             CROSS JOIN LATERAL ( SELECT notifications.due_at
                   FROM notify_worker.notifications
                  WHERE ((notifications.state = 'pending'::text) AND (notifications.project = of_project.project) AND (notifications.lane = of_project.lane) AND (notifications.due_at <= now()))
                  ORDER BY notifications.due_at
                 LIMIT 1) notification)
        )
 SELECT ( SELECT count(*) AS count
           FROM ( SELECT
                   FROM notify_worker.notifications
                  WHERE (notifications.state = 'pending'::text)
                 LIMIT 100000) capped) AS pending,
    ( SELECT count(*) AS count
           FROM due) AS due,
    ( SELECT count(*) AS count
           FROM leases
          WHERE (leases.due_at > now())) AS leased,
    ( SELECT count(*) AS count
           FROM leases
          WHERE ((leases.due_at <= now()) OR (leases.worker_id IS NULL))) AS orphans,
    ( SELECT (now() - oldest.due_at)
           FROM oldest) AS oldest_due_for,
    ( SELECT count(*) AS count
           FROM ( SELECT
                   FROM notify_worker.notifications
                  WHERE (notifications.state = 'held'::text)
                 LIMIT 100000) capped) AS held,
    ( SELECT count(*) AS count
           FROM ( SELECT
                   FROM notify_worker.dead_letters
                 LIMIT 100000) capped) AS dead_letters,
    ( SELECT count(*) AS count
           FROM notify_worker.stored_workers
          WHERE ((stored_workers.ended_at IS NULL) AND (stored_workers.seen_at > (now() - '00:00:10'::interval)))) AS workers,
    ( SELECT count(*) AS count
           FROM paused) AS paused_projects,
    ( SELECT count(*) AS count
           FROM ( SELECT
                   FROM notify_worker.stored_attempts
                  WHERE ((stored_attempts.recorded_at > (now() - '00:01:00'::interval)) AND (stored_attempts.verdict = 'sent'::text))
                 LIMIT 100000) capped) AS sent_last_minute;
COMMENT ON VIEW notify_worker.status IS 'How things stand, in one row. Counts stop at 100,000.';
COMMENT ON COLUMN notify_worker.status.due IS 'Of projects that are not paused.';
COMMENT ON COLUMN notify_worker.status.leased IS 'In the hands of workers.';
COMMENT ON COLUMN notify_worker.status.orphans IS 'Claimed, without an outcome, and nobody works on them: of a dead worker, or with a lease that ran out.';
COMMENT ON COLUMN notify_worker.status.oldest_due_for IS 'How late the longest due one is; null: nothing is due. The figure to watch.';
COMMENT ON COLUMN notify_worker.status.held IS 'Nobody can say whether FCM has them; for a person to decide: cancel or retry.';
COMMENT ON COLUMN notify_worker.status.sent_last_minute IS 'Deliveries that FCM has accepted.';

CREATE VIEW notify_worker.workers AS
 SELECT name,
    started_at,
    seen_at,
    host,
    pid
   FROM notify_worker.stored_workers
  WHERE ((ended_at IS NULL) AND (seen_at > (now() - '00:00:10'::interval)));
COMMENT ON VIEW notify_worker.workers IS 'Who is alive: has not left, was not found dead, and was seen within 10 s.';


CREATE FUNCTION notify_worker.add_deliveries(notification_ids bigint[]) RETURNS SETOF bigint
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    insert into stored_deliveries (notification_id, device_id, kind, address, platform, due_at)
    select
        notification.id,
        device.id,
        coalesce(device.kind, notification.kind),
        coalesce(device.address, notification.address),
        device.platform,
        case when notification.expanded_at is null then notification.due_at else clock_timestamp() end
    from notifications as notification
    join projects as project
        on project.name = notification.project
    left join devices as device
        on device.receiver_id = notification.receiver_id
        and device.project = notification.project
        and device.retired_at is null
        and device.seen_at > clock_timestamp() - project.stale_after
    where notification.id = any (add_deliveries.notification_ids)
        and notification.state = 'pending'
        and case
            when notification.receiver_id is null then notification.expanded_at is null
            else device.id is not null
        end
    on conflict (notification_id, device_id) do nothing
    returning notification_id
$$;
COMMENT ON FUNCTION notify_worker.add_deliveries(notification_ids bigint[]) IS 'Gives notifications a delivery for every live device that has none yet, or one to the address.';

CREATE FUNCTION notify_worker.apply_history(notification_ids bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
declare
    oldest timestamptz := (
        select min(leased_at) - interval '1 minute'     -- a minute, for a clock that was set back
        from notifications
        where id = any (notification_ids)
    );
begin
    update stored_deliveries as delivery
    set state = becomes.state,
        attempts = delivery.attempts + becomes.counted,
        tries = attempt.number,
        due_at = case
            when attempt.retry_at is null then delivery.due_at
            else greatest(
                least(
                    attempt.retry_at,
                    (
                        select expiry(notification, project.expires_after)      -- due then, to be ended
                        from projects as project
                        where project.name = notification.project
                    )
                ),
                notification.leased_at + interval '1 microsecond'
            )
        end,
        last_verdict = attempt.verdict,
        last_error_code = attempt.error_code,
        last_error = attempt.error,
        sent_as = attempt.sent_as,
        settled_at = case
            when becomes.state not in ('pending', 'held') then greatest(attempt.recorded_at, attempt.finished_at)
        end
    from notifications as notification,
        stored_attempts as attempt,
        lateral (
            select
                case
                    when attempt.verdict = 'sent' then 'sent'
                    when attempt.verdict in ('failed', 'unregistered') then 'failed'
                    when attempt.retry_at is not null then 'pending'
                    when attempt.verdict = 'unknown' and notification.on_unknown = 'hold' then 'held'
                    else 'failed'
                end as state,
                attempt.counts::integer as counted
        ) as becomes
    where notification.id = any (notification_ids)
        and notification.lease is not null
        and delivery.notification_id = notification.id
        and delivery.state = 'pending'
        and delivery.due_at <= notification.leased_at
        and attempt.delivery_id = delivery.id
        and attempt.lease = notification.lease
        and attempt.recorded_at >= oldest
        and not attempt.late;
end
$$;
COMMENT ON FUNCTION notify_worker.apply_history(notification_ids bigint[]) IS 'What the history holds for the open deliveries of these notifications, under their present leases, becomes their state.';

CREATE FUNCTION notify_worker.apply_late(notification_ids bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
begin
    update stored_deliveries as delivery
    set state = 'sent',
        last_verdict = 'sent',
        last_error_code = null,
        last_error = null,
        sent_as = attempt.sent_as,
        settled_at = clock_timestamp()
    from stored_attempts as attempt
    where delivery.notification_id = any (notification_ids)
        and delivery.state in ('pending', 'held')
        and delivery.tries > 0
        and attempt.delivery_id = delivery.id
        and attempt.verdict = 'sent'
        and attempt.late
        and attempt.recorded_at >= coalesce(delivery.retried_at, delivery.created_at);
    if found then
        perform settle(notification_ids);
    end if;
end
$$;
COMMENT ON FUNCTION notify_worker.apply_late(notification_ids bigint[]) IS 'What the history holds of late outcomes that say sent settles the open deliveries of these notifications.';

CREATE FUNCTION notify_worker.begin_incident(project text, scope text, because text, lasts double precision DEFAULT NULL::double precision, per_second double precision DEFAULT NULL::double precision) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    SET lock_timeout TO '500ms'
    AS $$
declare
    at timestamptz;
    ends timestamptz;
    is_probed boolean := begin_incident.lasts is null and begin_incident.scope <> 'devices';
    half double precision := begin_incident.per_second * greatest(1, (select count(*) from workers)) / 2;
begin
    -- Refused at once, or again within a minute, it says little of what FCM takes: then it is half of what was allowed.
    if half = 0 or half > 0 and exists (
        select from stored_incidents as before
        where before.project = begin_incident.project
            and before.per_second is not null
            and least(before.until, before.ended_at) between clock_timestamp() - interval '1 minute' and clock_timestamp()
    ) then
        select greatest(half, per_second(of_project) / 2) into half
        from projects as of_project
        where of_project.name = begin_incident.project;
    end if;

    perform from projects where name = begin_incident.project for update;   -- one after the other
    at := clock_timestamp();
    ends := case
        when begin_incident.lasts is not null then at + make_interval(secs => begin_incident.lasts)
        when begin_incident.scope = 'devices' then 'infinity'
        else at + probe_wait(begin_incident.scope, 0)
    end;

    update stored_incidents as incident
    set ended_at = incident.until
    where incident.project = begin_incident.project
        and incident.ended_at is null
        and incident.probes is null
        and incident.until <= at;

    update stored_incidents as incident
    set until = case when incident.probes is null then greatest(incident.until, ends) else incident.until end,
        per_second = greatest(incident.per_second, half)    -- whoever was refused at once has sent nothing, and knows least
    where incident.project = begin_incident.project
        and incident.scope = begin_incident.scope
        and incident.by = 'worker'
        and incident.ended_at is null
        and (incident.probes is not null) = is_probed;
    if not found then
        insert into stored_incidents (project, scope, by, began_at, until, because, probes, per_second)
        values (
            begin_incident.project,
            begin_incident.scope,
            'worker',
            at,
            ends,
            begin_incident.because || case
                when begin_incident.scope = 'devices' then '. ' || bring_back_devices(begin_incident.project, at)
                else ''
            end,
            case when is_probed then 0 end,
            case when half is not null then greatest(1, half) end
        );
    end if;
    perform reckon_pause(begin_incident.project);
end
$$;
COMMENT ON FUNCTION notify_worker.begin_incident(project text, scope text, because text, lasts double precision, per_second double precision) IS 'A worker found that something of a project is not worth a request, or that devices must not be retired any more.';

CREATE FUNCTION notify_worker.bring_back_devices(project text, at timestamp with time zone) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select format(
        'What was retired in the minute before comes back by: update notify_worker.devices set retired_at = null, retired_because = null '
            || 'where project = %L and retired_because = %L and retired_at between %L and %L',
        project,
        'FCM calls it unregistered',
        at - interval '1 minute',
        at + interval '1 second'
    )
$$;
COMMENT ON FUNCTION notify_worker.bring_back_devices(project text, at timestamp with time zone) IS 'Writes the statement that brings back the devices which were retired in the minute before a breaker stopped that.';

CREATE FUNCTION notify_worker.bring_forward(project text, waited_until timestamp with time zone) RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    with waiting as (
        select notification.id, notification.due_at
        from notifications as notification
        join projects as project
            on project.name = notification.project
        where notification.state = 'pending'
            and notification.project = bring_forward.project
            and notification.lane in (0, 1)
            and notification.due_at > clock_timestamp()
            and notification.due_at <= bring_forward.waited_until
            and notification.due_at in (bring_forward.waited_until, expiry(notification, project.expires_after))
            and notification.expanded_at is not null
            and notification.lease is null
        order by notification.id
        limit 10000
        for update of notification skip locked
    ), brought_forward as (
        update stored_deliveries as delivery
        set due_at = clock_timestamp()
        from waiting
        where delivery.notification_id = waiting.id
            and delivery.state = 'pending'
            and delivery.due_at = waiting.due_at
    )
    update notifications as notification
    set due_at = clock_timestamp()
    from waiting
    where notification.id = waiting.id
$$;
COMMENT ON FUNCTION notify_worker.bring_forward(project text, waited_until timestamp with time zone) IS 'What was put off until the end of an incident is due now.';

CREATE FUNCTION notify_worker.bury(worker_id integer, seen_at timestamp with time zone) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
declare
    longest interval;
    held bigint[];
begin
    if not exists (
        select from suspects() as suspect
        where suspect.worker_id = bury.worker_id and suspect.seen_at = bury.seen_at
    ) or not pg_try_advisory_xact_lock(recording_key(), bury.worker_id) then
        return 0;
    end if;

    update stored_workers
    set ended_at = clock_timestamp()
    where id = bury.worker_id and ended_at is null
    returning lease_length into longest;
    if not found then
        return 0;
    end if;

    select array_agg(id) into held
    from (
        select id
        from notifications
        where state = 'pending'
            and project in (select projects_in_line())
            and lane in (0, 1)
            and due_at <= clock_timestamp() + longest   -- its leases end by then: the index serves this
            and leased_by = bury.worker_id
        order by id
        for update skip locked                          -- what is locked comes back when its lease ends
    ) as its;
    perform take_over(held);
    return coalesce(cardinality(held), 0);
end
$$;
COMMENT ON FUNCTION notify_worker.bury(worker_id integer, seen_at timestamp with time zone) IS 'A worker is dead: what it held is due again, and what it did not record stands in the history as unknown.';

CREATE FUNCTION notify_worker.cancel(notification_id bigint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
declare
    notification notifications;
    nothing_left boolean;
begin
    select * into notification
    from notifications
    where id = cancel.notification_id
    for update;
    if notification.lease is null then
        perform apply_late(array[notification.id]);
        select * into notification from notifications where id = notification.id;
    end if;
    if not found or notification.state not in ('pending', 'held') then
        return false;
    end if;

    select notification.state = 'pending' and notification.lease is null and not exists (
        select from stored_deliveries as delivery
        where delivery.notification_id = notification.id
            and (
                delivery.state = 'sent'
                or exists (     -- of an earlier try as well: whatever came after it, FCM may have that one
                    select from stored_attempts as attempt
                    where attempt.delivery_id = delivery.id
                        and attempt.verdict in ('sent', 'unknown')
                )
            )
    ) into nothing_left;

    update notifications
    set cancelled_at = clock_timestamp()
    where id = notification.id;

    if notification.expanded_at is null then
        update notifications
        set state = 'cancelled',
            settled_at = clock_timestamp(),
            settled_because = 'it was cancelled by a call'
        where id = notification.id;
        return true;
    end if;

    update stored_deliveries as delivery
    set state = 'cancelled',
        settled_at = clock_timestamp()
    where delivery.notification_id = notification.id
        and delivery.state = 'held';
    perform settle(array[notification.id]);
    return nothing_left;
end
$$;
COMMENT ON FUNCTION notify_worker.cancel(notification_id bigint) IS 'Takes a wish back. True: nothing of it was leased or sent, and it will not arrive. False: what a worker holds ends as it ends.';

CREATE FUNCTION notify_worker.cancel(event_id text) RETURNS boolean
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select coalesce(
        (select cancel(notification.id) from notifications as notification where notification.event_id = cancel.event_id),
        false
    )
$$;
COMMENT ON FUNCTION notify_worker.cancel(event_id text) IS 'Takes the wish of an event back, as cancel does by its number.';

CREATE FUNCTION notify_worker.check_campaign() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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
COMMENT ON FUNCTION notify_worker.check_campaign() IS 'Refuses what is no campaign, without its words in the error.';

CREATE FUNCTION notify_worker.check_credentials() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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
COMMENT ON FUNCTION notify_worker.check_credentials() IS 'Refuses a key in the place of its place, without the key in the error.';

CREATE FUNCTION notify_worker.check_device() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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
COMMENT ON FUNCTION notify_worker.check_device() IS 'Refuses what is no device, without its address in the error.';

CREATE FUNCTION notify_worker.check_notification() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
declare
    rule text;
    what text;
    what_to_do text;
begin
    if num_nonnulls(new.receiver_id, new.address) <> 1 or (new.kind is null) <> (new.address is null) then
        rule := 'notifications_one_target';
        what := 'a notification names a receiver_id, or a kind and an address: one of the two, and not both';
        what_to_do := 'Give receiver_id alone, or kind and address without receiver_id.';
    elsif new.kind not in ('token', 'fid', 'topic', 'condition') then
        rule := 'notifications_kind';
        what := format('the kind of a notification''s address can''t be "%s"', left(new.kind, 40));
        what_to_do := 'There are token, fid, topic and condition.';
    elsif num_nonnulls(new.campaign, new.title, new.body, new.data, new.message) = 0 then
        rule := 'notifications_words';
        what := 'a notification says nothing';
        what_to_do := 'Give a campaign, or at least one of title, body, data and message.';
    elsif new.priority not in ('high', 'normal') then
        rule := 'notifications_priority';
        what := format('the priority of a notification can''t be "%s"', left(new.priority, 40));
        what_to_do := 'There are high and normal; null is FCM''s own default.';
    elsif new.on_unknown is null or new.on_unknown not in ('resend', 'hold') then
        rule := 'notifications_on_unknown';
        what := format('on_unknown of a notification can''t be "%s"', left(new.on_unknown, 40));
        what_to_do := 'There are resend (the default) and hold.';
    elsif octet_length(new.event_id) > 512 then
        rule := 'notifications_event_id';
        what := format('an event_id of %s bytes is too long', octet_length(new.event_id));
        what_to_do := 'At most 512 bytes; name the event, don''t describe it.';
    elsif octet_length(new.receiver_id) > 512 or octet_length(new.address) > 2048 then
        rule := 'notifications_whom';
        what := 'a receiver_id of more than 512 bytes, or an address of more than 2048, is too long';
        what_to_do := 'receiver_id is the application''s own user id; an address is what the device was given by Firebase.';
    elsif new.project is null or octet_length(new.project) > 512 then
        rule := 'notifications_project';
        what := 'the project of a notification is null, or longer than 512 bytes';
        what_to_do := 'Leave it out: it is "default".';
    elsif new.expires_at <= new.send_at then
        rule := 'notifications_expire_after_sending';
        what := 'a notification would expire before it is to be sent';
        what_to_do := 'expires_at has to be later than send_at.';
    elsif jsonb_typeof(new.params) <> 'object' then
        rule := 'notifications_params';
        what := format('the params of a notification can''t be %s', jsonb_typeof(new.params));
        what_to_do := 'An object: {"order_id": 42}.';
    elsif jsonb_typeof(new.message) <> 'object' then
        rule := 'notifications_message';
        what := format('the message of a notification can''t be %s', jsonb_typeof(new.message));
        what_to_do := 'An object with fields of FCM''s message: {"android": {"ttl": "60s"}}.';
    elsif new.state is null or new.state not in ('pending', 'sent', 'failed', 'expired', 'cancelled', 'unreachable', 'held') then
        rule := 'notifications_state';
        what := format('the state of a notification can''t be "%s"', left(new.state, 40));
        what_to_do := 'Leave it out: it is pending.';
    elsif new.data is not null then
        if jsonb_typeof(new.data) <> 'object' or jsonb_path_exists(new.data, 'strict $.* ? (@.type() != "string")') then
            rule := 'notifications_data';
            what := 'the data of a notification is not string to string';
            what_to_do := 'An object whose values are strings, as FCM wants it: {"order_id": "42"}.';
        elsif jsonb_path_exists(
            new.data,
            '$.keyvalue().key ? (@ == "from" || @ == "message_type" || @ == "notification" || @ == "notification_id"
                || @ starts with "google" || @ starts with "gcm")'
        ) then
            rule := 'notifications_data_keys';
            what := 'the data of a notification has a key that is reserved';
            what_to_do := 'FCM reserves from, message_type, notification, google… and gcm…; notification_id is put in by the worker.';
        end if;
    end if;

    if rule is not null then
        raise exception using
            errcode = 'check_violation',
            message = what,
            hint = what_to_do,
            constraint = rule,
            schema = tg_table_schema,
            table = tg_table_name;
    end if;

    -- Only where it differs from the default: to write a field costs more than all of the above.
    if new.priority = 'high' then
        new.lane := 0;
    end if;
    if new.send_at is not null then
        new.due_at := greatest(new.send_at, now());     -- one of long ago goes before nobody
    end if;
    return new;
end
$_$;
COMMENT ON FUNCTION notify_worker.check_notification() IS 'A notification is refused in its own transaction only for what its row alone shows, by a rule with a name.';

CREATE FUNCTION notify_worker.check_project(project text) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
begin
    if not exists (select from projects where name = check_project.project) then
        raise exception using
            errcode = 'undefined_object',
            message = format('there is no project "%s"', check_project.project)
                || nearest(check_project.project, (select array_agg(name) from projects));
    end if;
end
$$;
COMMENT ON FUNCTION notify_worker.check_project(project text) IS 'Refuses a project that is not there, and suggests the nearest name.';

CREATE FUNCTION notify_worker.claim(worker_id integer, lease uuid, most integer, limits jsonb) RETURNS TABLE(delivery_id bigint, notification_id bigint, project text, kind text, address text, platform text, on_unknown text, priority text, attempts integer, tries integer, probe boolean, expires_in double precision, expires_at double precision, tag text, title text, body text, image text, data jsonb, message jsonb, params jsonb, campaign text, campaign_words jsonb, state text)
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    at timestamptz;
    length interval;
    fresh bigint[];
    again bigint[];     -- these have deliveries already
    lapsed bigint[];    -- and of these, a lease ran out
    picked bigint[];
    probes bigint[];
begin
    select worker.lease_length into length
    from stored_workers as worker
    where worker.id = claim.worker_id
        and worker.ended_at is null;
    if not found then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('worker %s has left, or was found dead', claim.worker_id),
            hint = 'Enter again, under a new id.';
    end if;

    perform commit_durably();
    perform take_down_bells();
    at := clock_timestamp();

    select
        array_agg(id) filter (where expanded_at is null),
        array_agg(id) filter (where expanded_at is not null and lease is null),
        array_agg(id) filter (where lease is not null and may_take_over(id))
    into fresh, again, lapsed
    from pick(most, at, limits);

    again := coalesce(again, '{}') || coalesce(lapsed, '{}');
    picked := coalesce(fresh, '{}') || again;
    if picked = '{}' then
        return;
    end if;
    if lapsed is not null then
        perform take_over(lapsed);
        at := clock_timestamp();    -- what is unknown has become due just now
    end if;
    if again <> '{}' then
        perform apply_late(again);
        perform drop_moved_devices(again);
    end if;
    perform settle_unsendable(picked);
    perform expand(fresh);
    probes := put_off(picked, at);

    update notifications
    set lease = claim.lease,
        leased_by = claim.worker_id,
        leased_at = at,
        due_at = at + length,
        expanded_at = coalesce(expanded_at, at)
    where id = any (picked)
        and state = 'pending'
        and due_at <= at;

    return query
    select
        delivery.id,
        picked_one.id,
        picked_one.project,
        delivery.kind,
        delivery.address,
        delivery.platform,
        notification.on_unknown,
        notification.priority,
        delivery.attempts,
        delivery.tries,
        delivery.id = any (probes),
        date_part('epoch', expiry(notification, project.expires_after)) - date_part('epoch', at),
        date_part('epoch', expiry(notification, project.expires_after)),
        installation.digits || '-' || notification.id,
        notification.title,
        notification.body,
        notification.image,
        notification.data,
        notification.message,
        notification.params,
        notification.campaign,
        case when campaign.name is not null then jsonb_build_object(
            'title', campaign.title,
            'body', campaign.body,
            'image', campaign.image,
            'data', campaign.data,
            'message', campaign.message
        ) end,
        picked_one.state
    from unnest(picked) as pick (id)
    join notifications as picked_one
        on picked_one.id = pick.id
    left join stored_deliveries as delivery
        on delivery.notification_id = picked_one.id
        and delivery.state = 'pending'
        and delivery.due_at <= at
        and picked_one.state = 'pending'
    left join notifications as notification     -- only of what is sent: other content may be too big to be read
        on notification.id = delivery.notification_id
    left join projects as project
        on project.name = notification.project
    left join campaigns as campaign
        on campaign.name = notification.campaign
    cross join installation
    order by picked_one.lane, picked_one.id;
end
$$;
COMMENT ON FUNCTION notify_worker.claim(worker_id integer, lease uuid, most integer, limits jsonb) IS 'Takes up to `most` due notifications under a lease and returns what is to be sent of them, one row a delivery.';

CREATE FUNCTION notify_worker.closed(project notify_worker.projects) RETURNS text[]
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select array(
        select 'project'
        where project.paused_until > clock_timestamp()
        union
        select incident.scope
        from stored_incidents as incident
        where incident.project = closed.project.name
            and incident.ended_at is null
            and (incident.probes is not null or incident.until > clock_timestamp())
    )
$$;
COMMENT ON FUNCTION notify_worker.closed(project notify_worker.projects) IS 'Lists what of a project is not to be sent just now: the scopes of its open incidents.';

CREATE FUNCTION notify_worker.commit_durably() RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select set_config('synchronous_commit', 'on', true)
    where current_setting('synchronous_commit') in ('off', 'local')
$$;
COMMENT ON FUNCTION notify_worker.commit_durably() IS 'Makes the transaction that calls this commit durably, whatever the database''s default is.';

CREATE FUNCTION notify_worker.deliveries_out(lease uuid) RETURNS bigint[]
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select array_agg(delivery.id)
    from notifications as notification
    join stored_deliveries as delivery
        on delivery.notification_id = notification.id
    where notification.state = 'pending'
        and notification.project in (select projects_in_line())
        and notification.lane in (0, 1)
        and notification.due_at <= clock_timestamp() + interval '1 hour'
        and notification.lease = deliveries_out.lease
        and delivery.state = 'pending'
        and delivery.due_at <= notification.leased_at
$$;
COMMENT ON FUNCTION notify_worker.deliveries_out(lease uuid) IS 'Lists the deliveries that are out under a lease.';

CREATE FUNCTION notify_worker.drop_moved_devices(notification_ids bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
begin
    with follows as (
        -- One each: a device that followed two others is told once.
        select distinct on (waiting.notification_id, successor.id)
            waiting.id as delivery_id,
            successor.id as device_id,
            successor.kind,
            successor.address,
            successor.platform
        from notifications as notification
        join stored_deliveries as waiting
            on waiting.notification_id = notification.id
            and waiting.state = 'pending'
        join devices as device
            on device.id = waiting.device_id
            and device.retired_at is not null
        join devices as successor
            on successor.id = device.replaced_by
            and successor.retired_at is null
            and successor.receiver_id = notification.receiver_id
        where notification.id = any (notification_ids)
            and notification.state = 'pending'
            and not exists (
                select from stored_deliveries as other
                where other.notification_id = notification.id
                    and other.device_id = successor.id
            )
        order by waiting.notification_id, successor.id, waiting.id
    )
    update stored_deliveries as delivery
    set device_id = follows.device_id,
        kind = follows.kind,
        address = follows.address,
        platform = follows.platform
    from follows
    where delivery.id = follows.delivery_id;

    update stored_deliveries as delivery
    set state = 'failed',
        last_verdict = 'unregistered',
        last_error_code = null,
        last_error = case
            when device.retired_at is not null then 'the device was retired: ' || coalesce(device.retired_because, 'no reason given')
            when device.id is not null then 'the device belongs to another receiver by now'
            else 'the device was deleted'
        end,
        settled_at = clock_timestamp()
    from notifications as notification
    join stored_deliveries as open
        on open.notification_id = notification.id
        and open.state = 'pending'
        and open.device_id is not null
    left join devices as device
        on device.id = open.device_id
    where notification.id = any (notification_ids)
        and notification.state = 'pending'
        and delivery.id = open.id
        and (
            device.id is null
            or device.retired_at is not null
            or device.receiver_id is distinct from notification.receiver_id
        );
    if found then
        perform settle(notification_ids);
    end if;
end
$$;
COMMENT ON FUNCTION notify_worker.drop_moved_devices(notification_ids bigint[]) IS 'What waits for a device that was replaced goes to its successor; what waits for one that is gone ends as unregistered.';

CREATE FUNCTION notify_worker.drop_old_partitions(older_than interval) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    SET lock_timeout TO '2s'
    SET "TimeZone" TO 'UTC'
    AS $$
declare
    partition text;
    dropped integer := 0;
begin
    for partition in
        select child.relname
        from pg_inherits
        join pg_class as child
            on child.oid = pg_inherits.inhrelid
        where pg_inherits.inhparent = 'notify_worker.stored_attempts'::regclass
            and to_date(right(child.relname, 7), 'YYYY_MM') + interval '1 month' < now() - older_than
        order by child.relname
    loop
        execute format('alter table notify_worker.stored_attempts detach partition notify_worker.%I', partition);
        execute format('drop table notify_worker.%I', partition);
        dropped := dropped + 1;
    end loop;
    return dropped;
end
$$;
COMMENT ON FUNCTION notify_worker.drop_old_partitions(older_than interval) IS 'Drops the months of the history that ended longer ago than `older_than`. Returns how many.';

CREATE FUNCTION notify_worker.end_incident(project text, scope text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    SET lock_timeout TO '500ms'
    AS $$
declare
    waited_until timestamptz;
begin
    perform from projects where name = end_incident.project for update;   -- as begin_incident, and in its order
    update stored_incidents as incident
    set ended_at = clock_timestamp()
    where incident.project = end_incident.project
        and incident.scope = end_incident.scope
        and incident.by = 'worker'
        and incident.probes is not null
        and incident.ended_at is null
    returning incident.until into waited_until;
    if not found then
        return;
    end if;
    perform bring_forward(end_incident.project, waited_until);
    perform reckon_pause(end_incident.project);
    perform ring();
end
$$;
COMMENT ON FUNCTION notify_worker.end_incident(project text, scope text) IS 'A probe got through: what waited for it goes on.';

CREATE FUNCTION notify_worker.enter(host text, pid integer, lease_length interval, locks boolean DEFAULT true, OUT id integer, OUT name text) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
begin
    insert into stored_workers as worker (name, host, pid, lease_length, locks)
    values ('', enter.host, enter.pid, enter.lease_length, enter.locks)
    returning worker.id into enter.id;

    if enter.locks then
        perform pg_advisory_lock(presence_key(), enter.id);
    end if;

    update stored_workers as worker
    set name = format('%s-%s-%s', enter.host, enter.pid, enter.id)
    where worker.id = enter.id
    returning worker.name into enter.name;
end
$$;
COMMENT ON FUNCTION notify_worker.enter(host text, pid integer, lease_length interval, locks boolean, OUT id integer, OUT name text) IS 'A worker enters: gives it an id that is never used again and a name, and takes the lock of that id.';

CREATE FUNCTION notify_worker.expand(notification_ids bigint[]) RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    with expanded as materialized (
        select add_deliveries(expand.notification_ids) as id
    )
    update notifications as notification
    set state = 'unreachable',
        settled_at = clock_timestamp(),
        settled_because = 'the receiver has no live device'
    where notification.id = any (expand.notification_ids)
        and notification.state = 'pending'
        and notification.id not in (select id from expanded)
$$;
COMMENT ON FUNCTION notify_worker.expand(notification_ids bigint[]) IS 'Gives notifications their deliveries: one per live device of the receiver, or one to the address.';

CREATE FUNCTION notify_worker.expiry(notification notify_worker.notifications, expires_after interval) RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    AS $$
    select coalesce(
        notification.expires_at,
        greatest(notification.created_at, notification.send_at, notification.retried_at) + expires_after
    )
$$;
COMMENT ON FUNCTION notify_worker.expiry(notification notify_worker.notifications, expires_after interval) IS 'Says until when a notification is worth sending.';

CREATE FUNCTION notify_worker.explain(notification_id bigint) RETURNS TABLE(at timestamp with time zone, what text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
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
                || case when attempt.verdict = 'sent' then ': FCM has accepted it' || coalesce(' as ' || attempt.sent_as, '') else '' end
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
        join stored_incidents as incident
            on incident.project = notification.project
            and incident.scope in ('project', 'apns_web', 'topics')
            and incident.began_at <= coalesce(notification.settled_at, now())
        cross join lateral (
            select coalesce(incident.ended_at, case when incident.probes is null and incident.until <= now() then incident.until end) as at
        ) as ended
        cross join lateral (
            values
                (
                    incident.began_at,
                    'paused by ' || case incident.by when 'operator' then 'an operator' else 'a worker' end
                        || coalesce(': ' || incident.because, '')
                ),
                (ended.at, 'resumed')
        ) as moment (at, what)
        where coalesce(ended.at, now()) >= notification.created_at
            and moment.at <= coalesce(notification.settled_at, now())
            and (
                incident.scope = 'project'
                or exists (
                    select from stored_deliveries as stopped
                    where stopped.notification_id = notification.id
                        and stops(incident.scope, stopped)
                )
            )
        union all
        select settled_at, 4, 'it ended ' || state || coalesce(': ' || settled_because, '')
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
                when paused.until is not null then format('it is pending, and its project is paused until %s: %s', paused.until, paused.because)
                else format('it is pending, due at %s', due_at)
            end
        from notification
        left join lateral pause_of(notification.project) as paused
            on true
        where settled_at is null
    ) as line
    order by line.at, line.rank
$$;
COMMENT ON FUNCTION notify_worker.explain(notification_id bigint) IS 'Tells what happened to a notification: one line per thing that happened, in words.';

CREATE FUNCTION notify_worker.explain(event_id text) RETURNS TABLE(at timestamp with time zone, what text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select line.at, line.what
    from notifications as notification
    cross join lateral explain(notification.id) as line
    where notification.event_id = explain.event_id
$$;
COMMENT ON FUNCTION notify_worker.explain(event_id text) IS 'Tells what happened to the notification of an event.';

CREATE FUNCTION notify_worker.forget_receiver(receiver_id text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
declare
    theirs bigint[];
begin
    update devices as device
    set retired_at = coalesce(device.retired_at, now()),
        retired_because = 'the receiver was forgotten',
        address = 'forgotten:' || device.id
    where device.receiver_id = forget_receiver.receiver_id;

    select array_agg(notification.id order by notification.id) into theirs
    from notifications as notification
    where notification.receiver_id = forget_receiver.receiver_id;

    perform cancel(notification.id)
    from notifications as notification
    where notification.id = any (theirs)
        and notification.state in ('pending', 'held')
    order by notification.id;

    update stored_deliveries as delivery
    set address = 'forgotten:' || delivery.id
    where delivery.notification_id = any (theirs);

    update notifications as notification
    set title = null,
        body = null,
        image = null,
        params = null,
        data = null,
        message = null,
        settled_because = 'the receiver was forgotten'
    where notification.id = any (theirs);
    return coalesce(cardinality(theirs), 0);
end
$$;
COMMENT ON FUNCTION notify_worker.forget_receiver(receiver_id text) IS 'Forgets a person: devices retired, what waits cancelled, words, params and addresses blanked. Returns how many notifications.';

CREATE FUNCTION notify_worker.history(receiver_id text, since timestamp with time zone DEFAULT '-infinity'::timestamp with time zone) RETURNS TABLE(at timestamp with time zone, event_id text, notification_id bigint, campaign text, state text, because text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select
        notification.created_at,
        notification.event_id,
        notification.id,
        notification.campaign,
        notification.state,
        case
            when notification.settled_because is not null then notification.settled_because
            when notification.state = 'sent' then 'FCM has accepted it'
            when notification.state = 'held' then 'nobody can say whether FCM has it; it is for a person to decide'
            when notification.cancelled_at is not null then 'it was cancelled by a call'
            when notification.state = 'pending' and notification.lease is not null then 'a worker holds it'
            when notification.state = 'pending' and paused.because is not null then 'its project is paused: ' || paused.because
            when notification.state = 'pending' and stopped.because is not null then stopped.because
            when notification.state = 'pending' and notification.due_at > now()
                then coalesce(last.error || ', ', '') || 'due at ' || notification.due_at
            when notification.state = 'pending' then 'it is due'
            else coalesce(last.error, 'no reason was recorded')
        end
    from notifications as notification
    left join lateral (
        select delivery.last_error as error
        from stored_deliveries as delivery
        where delivery.notification_id = notification.id
            and delivery.last_error is not null
        order by delivery.settled_at desc nulls last
        limit 1
    ) as last on true
    left join lateral pause_of(notification.project) as paused
        on true
    left join lateral (
        select case incident.scope when 'apns_web' then 'iOS and web' else 'topics' end
            || ' of its project are paused: ' || incident.because as because
        from stored_incidents as incident
        join stored_deliveries as delivery
            on delivery.notification_id = notification.id
            and delivery.state = 'pending'
            and stops(incident.scope, delivery)
        where notification.state = 'pending'
            and incident.project = notification.project
            and incident.scope in ('apns_web', 'topics')
            and incident.ended_at is null
            and (incident.probes is not null or incident.until > now())
        limit 1
    ) as stopped
        on true
    where notification.receiver_id = history.receiver_id
        and notification.created_at >= history.since
    order by notification.id desc
$$;
COMMENT ON FUNCTION notify_worker.history(receiver_id text, since timestamp with time zone) IS 'Tells what became of a receiver''s notifications, and why: one line each, the newest first.';

CREATE FUNCTION notify_worker.installed_version() RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select version_num from schema_version
$$;
COMMENT ON FUNCTION notify_worker.installed_version() IS 'Says which version of the schema this is.';

CREATE FUNCTION notify_worker.keep_partitions() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    SET lock_timeout TO '2s'
    SET "TimeZone" TO 'UTC'
    AS $$
declare
    month timestamptz;
    partition text;
    made integer := 0;
begin
    perform pg_advisory_xact_lock(recording_key(), 0);      -- two at the turn of a month; no worker has the id 0
    for ahead in 0..3 loop
        month := date_trunc('month', now()) + make_interval(months => ahead);
        partition := 'stored_attempts_' || to_char(month, 'YYYY_MM');
        if to_regclass('notify_worker.' || partition) is null then
            execute format('create table notify_worker.%I (like notify_worker.stored_attempts including all)', partition);
            execute format(
                'alter table notify_worker.stored_attempts attach partition notify_worker.%I for values from (%L) to (%L)',
                partition, month, month + interval '1 month'
            );
            made := made + 1;
        end if;
    end loop;
    return made;
end
$$;
COMMENT ON FUNCTION notify_worker.keep_partitions() IS 'Keeps the history''s partitions three months ahead. Returns how many it made.';

CREATE FUNCTION notify_worker.leave(worker_ids integer[]) RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    update stored_workers
    set ended_at = clock_timestamp()
    where id = any (leave.worker_ids)
        and ended_at is null
$$;
COMMENT ON FUNCTION notify_worker.leave(worker_ids integer[]) IS 'A worker leaves, under each id that it has or had, with nothing in its hands.';

CREATE FUNCTION notify_worker.look_again(notification_ids bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
declare
    reachable bigint[];
begin
    update notifications set state = 'pending' where id = any (notification_ids);
    select array_agg(distinct id) into reachable from add_deliveries(notification_ids) as id;

    update notifications
    set state = case when id = any (reachable) then 'pending' else 'unreachable' end,
        due_at = case when id = any (reachable) then clock_timestamp() else due_at end,
        settled_at = case when id = any (reachable) then null else settled_at end
    where id = any (notification_ids);
end
$$;
COMMENT ON FUNCTION notify_worker.look_again(notification_ids bigint[]) IS 'Looks once more at the devices of receivers whose every address turned out to be gone: for a rotated token.';

CREATE FUNCTION notify_worker.mark(delivery_ids bigint[], leases uuid[]) RETURNS SETOF bigint
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select commit_durably();
    with mine as (
        select delivery.id, notification.lease
        from unnest(mark.delivery_ids, mark.leases) as asked (delivery_id, lease)
        join stored_deliveries as delivery
            on delivery.id = asked.delivery_id
        join notifications as notification
            on notification.id = delivery.notification_id
            and notification.lease = asked.lease
        where delivery.state = 'pending'
            and delivery.due_at <= notification.leased_at
            and notification.due_at > clock_timestamp()
        order by delivery.id
        for update of delivery skip locked
    )
    update stored_deliveries as delivery
    set marked_by = mine.lease
    from mine
    where delivery.id = mine.id
    returning delivery.id
$$;
COMMENT ON FUNCTION notify_worker.mark(delivery_ids bigint[], leases uuid[]) IS 'Writes down that requests of these deliveries are about to begin, and returns those of which that is so.';

CREATE FUNCTION notify_worker.may_take_over(notification_id bigint) RETURNS boolean
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select pg_try_advisory_xact_lock(recording_key(), leased_by::integer)
    from notifications
    where id = may_take_over.notification_id
$$;
COMMENT ON FUNCTION notify_worker.may_take_over(notification_id bigint) IS 'Says whether a lease that has run out may be taken over: not while its holder is just recording.';

CREATE FUNCTION notify_worker.nearest(word text, candidates text[]) RETURNS text
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select coalesce(
        (
            select format('; did you mean "%s"?', candidate)
            from unnest(candidates) as candidate,
                lateral (
                    select count(*) filter (where position(pair in lower(candidate)) > 0) as same, count(*) as pairs
                    from (
                        select substr(lower(left(word, 100)), at, 2) as pair
                        from generate_series(1, length(left(word, 100)) - 1) as at
                    ) as neighbours
                ) as likeness
            where 2 * likeness.same >= likeness.pairs and likeness.same > 0
            order by likeness.same desc, abs(length(candidate) - length(word)), candidate
            limit 1
        ),
        ''
    )
$$;
COMMENT ON FUNCTION notify_worker.nearest(word text, candidates text[]) IS 'Names the candidate that is spelt most like a word, as the end of a sentence.';

CREATE FUNCTION notify_worker.next_due_in() RETURNS double precision
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select date_part('epoch', min(next.due_at)) - date_part('epoch', clock_timestamp())
    from projects_in_line() as project
    cross join (values (0::smallint), (1::smallint)) as lane (number)
    cross join lateral (
        select notification.due_at
        from notifications as notification
        where notification.state = 'pending'
            and notification.project = project
            and notification.lane = lane.number
            and notification.due_at > clock_timestamp()
        order by notification.due_at
        limit 1
    ) as next
    where not exists (
        select from projects
        where projects.name = project
            and projects.paused_until > clock_timestamp()
    )
$$;
COMMENT ON FUNCTION notify_worker.next_due_in() IS 'Says in how many seconds the next notification is due that is not due yet; null: there is none.';

CREATE FUNCTION notify_worker.outcomes_of(outcomes jsonb) RETURNS TABLE(delivery_id bigint, notification_id bigint, lease uuid, verdict text, requests integer, started_ago double precision, finished_ago double precision, http_status integer, error_code text, error text, retry_in double precision, sent_as text, counts boolean)
    LANGUAGE sql IMMUTABLE
    AS $$
    select *
    from jsonb_to_recordset(outcomes) as outcome (
        delivery_id bigint,
        notification_id bigint,
        lease uuid,
        verdict text,
        requests integer,
        started_ago double precision,
        finished_ago double precision,
        http_status integer,
        error_code text,
        error text,
        retry_in double precision,
        sent_as text,
        counts boolean
    )
$$;
COMMENT ON FUNCTION notify_worker.outcomes_of(outcomes jsonb) IS 'Reads the outcomes that a worker hands to record, as rows.';

CREATE FUNCTION notify_worker.pause(project text, because text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
begin
    perform check_project(pause.project);
    insert into stored_incidents (project, by, because)
    values (pause.project, 'operator', pause.because);
    perform reckon_pause(pause.project);
end
$$;
COMMENT ON FUNCTION notify_worker.pause(project text, because text) IS 'Sends nothing of a project until somebody resumes it; no probe lifts this.';

CREATE FUNCTION notify_worker.pause_of(project text) RETURNS TABLE(until text, because text)
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select
        case
            when incident.probes is not null
                then 'a probe gets through, the next one at ' || date_trunc('second', greatest(incident.until, now()))
            when projects.paused_until = 'infinity' then 'somebody resumes it'
            else date_trunc('second', projects.paused_until)::text
        end,
        coalesce(projects.paused_because, incident.because, 'no reason given')
    from projects
    left join stored_incidents as incident
        on incident.project = projects.name
        and incident.scope = 'project'
        and incident.ended_at is null
        and incident.probes is not null
        and incident.until >= coalesce(projects.paused_until, '-infinity')
    where projects.name = pause_of.project
        and (projects.paused_until > now() or incident.id is not null)
    limit 1
$$;
COMMENT ON FUNCTION notify_worker.pause_of(project text) IS 'Says until when a project is paused, in words, and why. No row: it is not.';

CREATE FUNCTION notify_worker.per_second(project notify_worker.projects) RETURNS double precision
    LANGUAGE sql STABLE
    AS $$
    select least(
        coalesce(project.max_per_second, 10000),
        (
            select
                incident.per_second * power(2, least(60, greatest(0,
                    date_part('epoch', clock_timestamp() - least(incident.until, incident.ended_at)) / 60)))
            from notify_worker.stored_incidents as incident
            where incident.project = project.name
                and incident.per_second is not null
            order by incident.id desc
            limit 1
        )
    )
$$;
COMMENT ON FUNCTION notify_worker.per_second(project notify_worker.projects) IS 'Says how many messages a second all workers together may send of a project.';

CREATE FUNCTION notify_worker.pick(most integer, due_by timestamp with time zone, limits jsonb) RETURNS TABLE(id bigint, expanded_at timestamp with time zone, lease uuid)
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
#variable_conflict use_column
declare
    in_line text[] := array(
        select project
        from projects_due(due_by) as due (project)
        where limits ? project
            or not exists (select from projects where projects.name = due.project)
        order by random()
    );
    of_project text;
    left_over integer := most;
    projects_left integer := cardinality(in_line);
    share integer;
    of_lane smallint;
    for_normal integer;
    taken integer;
    allowed integer;
begin
    foreach of_project in array in_line loop
        exit when left_over < 1;
        share := least(ceil(left_over::numeric / projects_left), (limits ->> of_project)::integer);
        projects_left := projects_left - 1;
        if share >= 1 then
            allowed := probes_allowed(of_project, due_by);
            share := least(share, allowed);
        end if;
        continue when share < 1;

        -- Every other probe is what has come last and was never tried: else what fails each time would be asked again and again,
        -- and all else wait.
        if allowed = 1 and exists (
            select from stored_incidents as incident
            where incident.project = of_project
                and incident.scope = 'project'
                and incident.ended_at is null
                and incident.probes % 2 = 0
        ) then
            taken := 0;
            foreach of_lane in array array[1, 0] loop
                return query
                select notification.id, notification.expanded_at, notification.lease
                from notifications as notification
                where notification.state = 'pending'
                    and notification.project = of_project
                    and notification.lane = of_lane
                    and notification.due_at <= due_by
                    and notification.expanded_at is null
                order by notification.due_at desc
                limit 1
                for update skip locked;
                get diagnostics taken = row_count;
                exit when taken > 0;
            end loop;
            left_over := left_over - taken;
            continue when taken > 0;
        end if;

        -- An eighth, so that it is a tenth of any few seconds; and of a small share now and then one.
        select count(*) into for_normal
        from (
            select from notifications as notification
            where notification.state = 'pending'
                and notification.project = of_project
                and notification.lane = 1
                and notification.due_at <= due_by
            order by notification.due_at
            limit floor(share / 8.0 + random())::integer
            for update skip locked      -- what somebody else has locked is no reason to leave room
        ) as waiting;

        foreach of_lane in array array[0, 1] loop
            return query
            select notification.id, notification.expanded_at, notification.lease
            from notifications as notification
            where notification.state = 'pending'
                and notification.project = of_project
                and notification.lane = of_lane
                and notification.due_at <= due_by
            order by notification.due_at
            limit case of_lane when 0 then share - for_normal else share end
            for update skip locked;
            get diagnostics taken = row_count;
            share := share - taken;
            left_over := left_over - taken;
        end loop;
    end loop;
end
$$;
COMMENT ON FUNCTION notify_worker.pick(most integer, due_by timestamp with time zone, limits jsonb) IS 'Locks up to `most` due notifications and lists them: of each project its share, within its limit, high before normal.';

CREATE FUNCTION notify_worker.presence_key() RETURNS integer
    LANGUAGE sql IMMUTABLE
    AS $$select 1853321330$$;
COMMENT ON FUNCTION notify_worker.presence_key() IS 'The first half of the advisory lock that a worker''s session holds while it lives.';

CREATE FUNCTION notify_worker.probe_wait(scope text, probes integer) RETURNS interval
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select case
        when scope = 'apns_web' then interval '15 minutes'
        else least(interval '5 minutes', interval '10 seconds' * power(2, least(probes, 10)))
    end
$$;
COMMENT ON FUNCTION notify_worker.probe_wait(scope text, probes integer) IS 'Says how long after a probe, or after the beginning, the next one is made.';

CREATE FUNCTION notify_worker.probes_allowed(project text, due_by timestamp with time zone) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
begin
    if not exists (
        select from stored_incidents as incident
        where incident.project = probes_allowed.project
            and incident.scope = 'project'
            and incident.ended_at is null
            and incident.probes is not null
    ) then
        return 2147483647;
    end if;

    -- In the order of begin_incident; whoever has it just now changes what is to be decided here.
    perform from projects where name = probes_allowed.project for update skip locked;
    if not found then
        return 0;
    end if;

    update stored_incidents as incident
    set probes = incident.probes + 1,
        until = due_by + probe_wait(incident.scope, incident.probes + 1)
    where incident.id in (
        select lapsed.id
        from stored_incidents as lapsed
        where lapsed.project = probes_allowed.project
            and lapsed.scope = 'project'
            and lapsed.ended_at is null
            and lapsed.probes is not null
            and lapsed.until <= due_by
        for update skip locked
    );
    if not found then
        return 0;
    end if;
    perform reckon_pause(probes_allowed.project);
    return 1;
end
$$;
COMMENT ON FUNCTION notify_worker.probes_allowed(project text, due_by timestamp with time zone) IS 'Says how many notifications may be claimed of a project as far as its incidents go: any number, one as a probe, or none.';

CREATE FUNCTION notify_worker.projects_due(due_by timestamp with time zone) RETURNS SETOF text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select line.project
    from projects_in_line() as line (project)
    where not exists (
            select from projects
            where projects.name = line.project
                and projects.paused_until > projects_due.due_by
        )
        and exists (
            select
            from (values (0::smallint), (1::smallint)) as lane (number)
            cross join lateral (
                select from notifications as notification
                where notification.state = 'pending'
                    and notification.project = line.project
                    and notification.lane = lane.number
                    and notification.due_at <= projects_due.due_by
                order by notification.due_at    -- so that the index is read, and one row of it
                limit 1
            ) as due
        )
$$;
COMMENT ON FUNCTION notify_worker.projects_due(due_by timestamp with time zone) IS 'Lists the projects that are not paused and have something due.';

CREATE FUNCTION notify_worker.projects_in_line() RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    with recursive step (project) as (
        (select project from notifications where state = 'pending' order by project limit 1)
        union all
        select (
            select notification.project
            from notifications as notification
            where notification.state = 'pending'
                and notification.project > step.project
            order by notification.project
            limit 1
        )
        from step
        where step.project is not null
    ), first as materialized (
        select project from step where project is not null limit 1000
    )
    select project from first
    union
    select name
    from projects
    where (select count(*) from first) = 1000
        and exists (
            select from notifications as notification
            where notification.state = 'pending'
                and notification.project = projects.name
            order by notification.project   -- so that the index is read
            limit 1
        )
$$;
COMMENT ON FUNCTION notify_worker.projects_in_line() IS 'Lists the projects that have pending notifications.';

CREATE FUNCTION notify_worker.prune(older_than interval, most integer DEFAULT 1000) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
declare
    deleted integer;
begin
    if older_than < interval '0' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('what settled longer ago than %s would be all of it', older_than),
            hint = 'Give a length of zero or more, such as 90 days.';
    end if;

    with old as (
        select id
        from notifications
        where settled_at < now() - prune.older_than
        order by settled_at
        limit prune.most
        for update skip locked
    ), deliveries_gone as (
        delete from stored_deliveries
        using old
        where stored_deliveries.notification_id = old.id
    )
    delete from notifications
    using old
    where notifications.id = old.id;
    get diagnostics deleted = row_count;
    return deleted;
end
$$;
COMMENT ON FUNCTION notify_worker.prune(older_than interval, most integer) IS 'Deletes up to `most` settled notifications that ended longer ago than `older_than`. Returns how many.';

CREATE FUNCTION notify_worker.put_back_in_line(notification_id bigint, only_delivery bigint) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
declare
    notification notifications;
    again integer;
    added integer := 0;
begin
    select * into notification
    from notifications
    where id = put_back_in_line.notification_id
    for update;
    if not found or notification.settled_because = 'the receiver was forgotten' then
        return 0;
    end if;
    if notification.lease is not null then
        raise exception using
            errcode = 'object_in_use',
            message = format('notification %s is in the hands of a worker', notification.id),
            hint = 'Try again when it has ended: within its lease, and seconds as a rule.';
    end if;
    perform apply_late(array[notification.id]);
    select * into notification from notifications where id = notification.id;

    update stored_deliveries as delivery
    set state = 'pending',
        attempts = 0,
        due_at = clock_timestamp(),
        retried_at = clock_timestamp(),
        settled_at = null
    where delivery.notification_id = notification.id
        and (only_delivery is null or delivery.id = only_delivery)
        and delivery.state in ('failed', 'expired', 'cancelled', 'held')
        and (
            delivery.device_id is null
            or exists (
                select from devices as device
                where device.id = delivery.device_id
                    and device.retired_at is null
                    and device.receiver_id = notification.receiver_id
            )
        );
    get diagnostics again = row_count;

    if only_delivery is null and notification.expanded_at is not null and notification.receiver_id is not null then
        update notifications set state = 'pending' where id = notification.id;
        select count(*) into added from add_deliveries(array[notification.id]);
    end if;
    if again + added = 0 and (notification.expanded_at is not null or notification.state = 'pending') then
        update notifications set state = notification.state where id = notification.id;
        return 0;
    end if;

    update notifications
    set state = 'pending',
        due_at = least(clock_timestamp(), case when notification.state = 'pending' then due_at end),
        expires_at = case when expires_at > clock_timestamp() then expires_at end,
        retried_at = clock_timestamp(),
        cancelled_at = null,
        settled_at = null,
        settled_because = null
    where id = notification.id;
    perform ring();
    return again + added;
end
$$;
COMMENT ON FUNCTION notify_worker.put_back_in_line(notification_id bigint, only_delivery bigint) IS 'What retry and retry_delivery do: the whole notification, or one delivery of it.';

CREATE FUNCTION notify_worker.put_off(notification_ids bigint[], at timestamp with time zone) RETURNS bigint[]
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
declare
    incident stored_incidents;
    stopped bigint[];
    is_mine boolean;
    probe bigint;
    probes bigint[] := '{}';
begin
    for incident in
        select open.*
        from stored_incidents as open
        where open.ended_at is null
            and open.by = 'worker'
            and (open.probes is not null or open.scope = 'topics' and open.until > at)
            and open.project in (select project from notifications where id = any (notification_ids))
        order by open.scope = 'project', open.scope, open.id    -- what another one stops is no probe of the project
    loop
        stopped := array(
            select delivery.id
            from notifications as notification
            join stored_deliveries as delivery
                on delivery.notification_id = notification.id
            where notification.id = any (notification_ids)
                and notification.state = 'pending'
                and notification.project = incident.project
                and delivery.state = 'pending'
                and delivery.due_at <= at
                and stops(incident.scope, delivery)
            order by delivery.due_at, delivery.id
        );
        -- One claim after the other takes a turn; whoever ends it waits, and brings forward what is put off here.
        perform from stored_incidents as locked
        where locked.id = incident.id
        for update skip locked;
        is_mine := found;
        select * into incident from stored_incidents as open where open.id = incident.id;
        continue when incident.ended_at is not null;

        if stopped = '{}' then
            -- What pick took ended unsent: the turn is still to be had.
            if is_mine and incident.scope = 'project' and incident.probes > 0 then
                update stored_incidents as unused
                set probes = unused.probes - 1,
                    until = at
                where unused.id = incident.id;
                perform reckon_pause(incident.project);
            end if;
            continue;
        end if;

        probe := null;
        if not is_mine then
            incident.until := at + interval '1 second';     -- somebody else has it just now: then we look again
        elsif incident.scope = 'project' then
            probe := stopped[1];        -- pick has taken this turn
            incident.until := at;       -- the pause holds the others back, and lets them go
        elsif incident.until <= at then
            update stored_incidents as lapsed
            set probes = lapsed.probes + 1,
                until = at + probe_wait(lapsed.scope, lapsed.probes + 1)
            where lapsed.id = incident.id
            returning lapsed.until into incident.until;
            probe := stopped[1];
        end if;
        probes := probes || probe;

        update stored_deliveries as delivery
        set due_at = greatest(
            at + interval '1 millisecond',
            least(incident.until, expiry(notification, project.expires_after))
        )
        from notifications as notification
        join projects as project
            on project.name = notification.project
        where delivery.id = any (stopped)
            and delivery.id is distinct from probe
            and notification.id = delivery.notification_id;
        if found then
            update notifications    -- else whoever claims it next gives it its deliveries once more
            set expanded_at = at
            where id = any (notification_ids)
                and state = 'pending'
                and expanded_at is null;
            perform settle(notification_ids);
        end if;
    end loop;
    return array_remove(probes, null);
end
$$;
COMMENT ON FUNCTION notify_worker.put_off(notification_ids bigint[], at timestamp with time zone) IS 'Puts off the deliveries that an open incident of their project stops, and returns those that are probes.';

CREATE FUNCTION notify_worker.reckon_pause(project text) RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    update projects
    set paused_until = latest.until,
        paused_because = latest.because
    from (values (1)) as always
    left join lateral (
        select incident.until, incident.because
        from stored_incidents as incident
        where incident.project = reckon_pause.project
            and incident.scope = 'project'
            and incident.ended_at is null
            and (incident.probes is not null or incident.until > clock_timestamp())
        order by incident.until desc, incident.id
        limit 1
    ) as latest on true
    where projects.name = reckon_pause.project
$$;
COMMENT ON FUNCTION notify_worker.reckon_pause(project text) IS 'Writes down until when a project sends nothing, by its open incidents.';

CREATE FUNCTION notify_worker.record(worker_id integer, outcomes jsonb) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
declare
    at timestamptz;
    added integer;
    held bigint[];
begin
    perform commit_durably();
    -- The same outcomes on two connections (an answer was lost), or a lease that is just taken over: one after the other.
    perform pg_advisory_xact_lock(recording_key(), record.worker_id);
    at := statement_timestamp();    -- the ages were reckoned as the call left: the wait for that lock is none of them

    insert into stored_attempts (
        delivery_id, notification_id, number, lease, worker, started_at, finished_at,
        verdict, requests, http_status, error_code, error, retry_at, sent_as, counts, late, recorded_at
    )
    select
        outcome.delivery_id,
        delivery.notification_id,
        coalesce(cut_off.number, delivery.tries + 1),
        outcome.lease,
        coalesce(worker.name, record.worker_id::text),
        at - make_interval(secs => outcome.started_ago),
        at - make_interval(secs => outcome.finished_ago),
        outcome.verdict,
        outcome.requests,
        outcome.http_status,
        outcome.error_code,
        outcome.error,
        at + make_interval(secs => outcome.retry_in),
        outcome.sent_as,
        outcome.verdict <> 'paused' and coalesce(outcome.counts, true),
        notification.lease is distinct from outcome.lease,
        clock_timestamp()       -- and not when this began: a call may have put the delivery back in line since
    from (select distinct on (delivery_id, lease) * from outcomes_of(outcomes)) as outcome
    join stored_deliveries as delivery
        on delivery.id = outcome.delivery_id
    join notifications as notification
        on notification.id = delivery.notification_id
    left join stored_workers as worker
        on worker.id = record.worker_id
    left join stored_attempts as cut_off    -- the unknown row that a late outcome answers
        on notification.lease is distinct from outcome.lease
        and cut_off.delivery_id = outcome.delivery_id
        and cut_off.lease = outcome.lease
        and cut_off.finished_at is null
    where not exists (
        select from stored_attempts as known
        where known.delivery_id = outcome.delivery_id
            and known.lease = outcome.lease
            and known.finished_at is not null
            -- It was added after it began: this spares the partitions of older months. A minute, for a clock that was set back.
            and known.recorded_at >= at - make_interval(secs => outcome.started_ago + 60)
    );
    get diagnostics added = row_count;

    select array_agg(id) into held
    from (
        select notification.id
        from notifications as notification
        where (notification.id, notification.lease) in (
            select outcome.notification_id, outcome.lease from outcomes_of(outcomes) as outcome
        )
        order by notification.id
        for update skip locked
    ) as mine;

    perform apply_history(held);
    perform settle(held);
    perform settle_late(outcomes);
    perform touch_devices(outcomes);
    return added;
end
$$;
COMMENT ON FUNCTION notify_worker.record(worker_id integer, outcomes jsonb) IS 'Writes down what became of deliveries that this worker holds, or held: history first, then the rows that are not locked.';

CREATE FUNCTION notify_worker.recording_key() RETURNS integer
    LANGUAGE sql IMMUTABLE
    AS $$select 1853321331$$;
COMMENT ON FUNCTION notify_worker.recording_key() IS 'The first half of the advisory lock that record holds until its commit.';

CREATE FUNCTION notify_worker.register_device(receiver_id text, kind text, address text, platform text DEFAULT NULL::text, project text DEFAULT 'default'::text, replaces text DEFAULT NULL::text) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    -- The clock's time, not the transaction's: an answer to a request that began before must not retire it.
    with registered as (
        insert into devices as device (receiver_id, kind, address, platform, project, registered_at)
        values (
            register_device.receiver_id,
            register_device.kind,
            register_device.address,
            register_device.platform,
            register_device.project,
            clock_timestamp()
        )
        on conflict on constraint devices_address_once do update
            set receiver_id = excluded.receiver_id,
                platform = coalesce(excluded.platform, device.platform),
                registered_at = excluded.registered_at,
                seen_at = now(),
                retired_at = null,
                retired_because = null,
                replaced_by = null
        returning device.id
    ), followed as (
        select device.id
        from devices as device
        where device.project = register_device.project
            and device.kind in ('token', 'fid')
            and device.address = register_device.replaces
            and (device.kind, device.address) <> (register_device.kind, register_device.address)
    ), replaced as (
        update devices as device
        set retired_at = coalesce(device.retired_at, now()),
            retired_because = coalesce(device.retired_because, 'replaced'),
            replaced_by = registered.id
        from registered
        where (device.id in (select id from followed) or device.replaced_by in (select id from followed))
            and device.id <> registered.id
    )
    select id from registered
$$;
COMMENT ON FUNCTION notify_worker.register_device(receiver_id text, kind text, address text, platform text, project text, replaces text) IS 'An address belongs to whoever registered it last. Returns the device''s id.';

CREATE FUNCTION notify_worker.release(lease uuid, delivery_ids bigint[] DEFAULT NULL::bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
declare
    given_back bigint[] := coalesce(delivery_ids, deliveries_out(release.lease));
    held bigint[];
begin
    select array_agg(id) into held
    from (
        select notification.id
        from notifications as notification
        where notification.lease = release.lease
            and notification.id in (select notification_id from stored_deliveries where id = any (given_back))
        order by notification.id
        for update skip locked
    ) as mine;

    update stored_deliveries as delivery
    set due_at = greatest(clock_timestamp(), notification.leased_at + interval '1 microsecond')
    from notifications as notification
    where delivery.id = any (given_back)
        and delivery.state = 'pending'
        and delivery.due_at <= notification.leased_at
        and notification.id = delivery.notification_id
        and notification.id = any (held);
    perform settle(held);
end
$$;
COMMENT ON FUNCTION notify_worker.release(lease uuid, delivery_ids bigint[]) IS 'Gives back deliveries that were claimed and not sent: due again at once, nothing is counted.';

CREATE FUNCTION notify_worker.resume(project text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
begin
    perform check_project(resume.project);
    perform from projects where name = resume.project for update;   -- as begin_incident, and in its order
    perform from stored_incidents as incident
    where incident.project = resume.project
        and incident.ended_at is null
    for update;     -- what a claim is just now putting off is brought forward too
    perform bring_forward(resume.project, incident.until)
    from stored_incidents as incident
    where incident.project = resume.project
        and incident.until < 'infinity'
        and incident.ended_at is null;

    update stored_incidents as incident
    set ended_at = case when incident.probes is null then least(incident.until, now()) else now() end    -- one that ended by itself ended then
    where incident.project = resume.project
        and incident.ended_at is null;

    update projects
    set paused_until = null,
        paused_because = null
    where name = resume.project;
    perform ring();
end
$$;
COMMENT ON FUNCTION notify_worker.resume(project text) IS 'Ends every pause and breaker of a project, whoever began it, and rings.';

CREATE FUNCTION notify_worker.retire_device(kind text, address text, project text DEFAULT 'default'::text) RETURNS boolean
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    with retired as (
        update devices as device
        set retired_at = now(),
            retired_because = 'retired by the application'
        where device.project = retire_device.project
            and device.kind = retire_device.kind
            and device.address = retire_device.address
            and device.retired_at is null
        returning device.id
    )
    select exists (select from retired)
$$;
COMMENT ON FUNCTION notify_worker.retire_device(kind text, address text, project text) IS 'Nothing is sent to this address any more, until it is registered again. Says whether it was in use.';

CREATE FUNCTION notify_worker.retry(notification_id bigint) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
begin
    return put_back_in_line(retry.notification_id, null);
end
$$;
COMMENT ON FUNCTION notify_worker.retry(notification_id bigint) IS 'Puts a notification back in line with a fresh budget. Returns how many deliveries are due again.';

CREATE FUNCTION notify_worker.retry(event_id text) RETURNS integer
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select coalesce(
        (select retry(notification.id) from notifications as notification where notification.event_id = retry.event_id),
        0
    )
$$;
COMMENT ON FUNCTION notify_worker.retry(event_id text) IS 'Puts the notification of an event back in line, as retry does by its number.';

CREATE FUNCTION notify_worker.retry_dead_letters(project text, since timestamp with time zone) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
declare
    of_one bigint;
    again integer := 0;
begin
    perform check_project(retry_dead_letters.project);
    for of_one in
        select distinct letter.notification_id
        from dead_letters as letter
        where letter.project = retry_dead_letters.project
            and letter.failed_at >= retry_dead_letters.since
        order by letter.notification_id
    loop
        begin
            again := again + put_back_in_line(of_one, null);
        exception
            when object_in_use then
                null;
        end;
    end loop;
    return again;
end
$$;
COMMENT ON FUNCTION notify_worker.retry_dead_letters(project text, since timestamp with time zone) IS 'Puts every dead letter of a project back in line that failed since then. Returns how many deliveries.';

CREATE FUNCTION notify_worker.retry_delivery(delivery_id bigint) RETURNS integer
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select coalesce(
        (
            select put_back_in_line(delivery.notification_id, delivery.id)
            from stored_deliveries as delivery
            where delivery.id = retry_delivery.delivery_id
        ),
        0
    )
$$;
COMMENT ON FUNCTION notify_worker.retry_delivery(delivery_id bigint) IS 'Puts one delivery back in line. Returns 1, or 0 where there is nothing to retry.';

CREATE FUNCTION notify_worker.ring(even_if_one_waits boolean DEFAULT false) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
begin
    if even_if_one_waits is not true and exists (
        select from procrastinate_jobs
        where status = 'todo'
            and queue_name = 'notify_worker'
            and task_name = 'notify_worker.drain'
            and (scheduled_at is null or scheduled_at <= clock_timestamp())
        order by priority desc, id      -- so that the index over todo serves it
        limit 1
    ) then
        return false;
    end if;
    perform procrastinate_defer_jobs_v1(
        array[row('notify_worker', 'notify_worker.drain', 0, null, null, '{}', null)::procrastinate_job_to_defer_v1]
    );
    return true;
end
$$;
COMMENT ON FUNCTION notify_worker.ring(even_if_one_waits boolean) IS 'Wakes a worker when this transaction commits, unless a bell waits already.';

CREATE FUNCTION notify_worker.settle(notification_ids bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
declare
    unreachable bigint[];
begin
    if notification_ids is null then
        return;
    end if;

    -- What was cancelled while a worker held it: nothing is started after that.
    update stored_deliveries as delivery
    set state = 'cancelled',
        settled_at = clock_timestamp()
    from notifications as notification
    where notification.id = any (notification_ids)
        and notification.cancelled_at is not null
        and delivery.notification_id = notification.id
        and delivery.state = 'pending'
        and not (notification.lease is not null and delivery.due_at <= notification.leased_at);

    with derived as (
        select
            delivery.notification_id,
            min(delivery.due_at) filter (where delivery.state = 'pending') as due_at,
            case
                when bool_or(delivery.state = 'pending') then 'pending'
                when bool_or(delivery.state = 'held') then 'held'
                when bool_or(delivery.state = 'sent') then 'sent'
                when bool_or(holder.cancelled_at is not null) then 'cancelled'
                when bool_and(delivery.state = 'failed' and delivery.last_verdict is not distinct from 'unregistered') then 'unreachable'
                when bool_or(delivery.state = 'failed') then 'failed'
                when bool_or(delivery.state = 'expired') then 'expired'
                else 'cancelled'
            end as state
        from stored_deliveries as delivery
        join notifications as holder
            on holder.id = delivery.notification_id
        where delivery.notification_id = any (notification_ids)
        group by delivery.notification_id
        having not bool_or(
            holder.lease is not null and delivery.state = 'pending' and delivery.due_at <= holder.leased_at
        )
    ), settled as (
        update notifications as notification
        set state = derived.state,
            due_at = coalesce(derived.due_at, notification.due_at),
            lease = null,
            leased_by = null,
            settled_at = case when derived.state not in ('pending', 'held') then clock_timestamp() end
        from derived
        where notification.id = derived.notification_id
        returning notification.id, notification.state
    )
    select array_agg(id) into unreachable from settled where state = 'unreachable';

    if unreachable is not null then
        perform look_again(unreachable);
    end if;
end
$$;
COMMENT ON FUNCTION notify_worker.settle(notification_ids bigint[]) IS 'Derives the state of these notifications from their deliveries, and ends the lease of each that has none out any more.';

CREATE FUNCTION notify_worker.settle_late(outcomes jsonb) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
declare
    free bigint[];
begin
    select array_agg(id) into free
    from (
        select notification.id
        from notifications as notification
        where notification.id in (
            select outcome.notification_id from outcomes_of(outcomes) as outcome where outcome.verdict = 'sent'
        )
            and notification.state in ('pending', 'held')
            and notification.lease is null
        order by notification.id
        for update skip locked
    ) as unleased;
    perform apply_late(free);
end
$$;
COMMENT ON FUNCTION notify_worker.settle_late(outcomes jsonb) IS 'A late outcome that says sent settles its delivery where that is held, or pending and unleased.';

CREATE FUNCTION notify_worker.settle_unsendable(notification_ids bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
declare
    at timestamptz := clock_timestamp();
    unsendable_ids bigint[];
begin
    with judged as (
        select
            notification.id,
            notification.project,
            notification.campaign,
            case
                when its_project.name is null then 'no project'
                when expiry(notification, its_project.expires_after) <= at then 'expired'
                when its_campaign.retired_at <= at then 'retired'
                when notification.campaign is not null and its_campaign.name is null then 'no campaign'
                when words_are_too_big(notification, its_campaign) then 'too big'
            end as reason
        from notifications as notification
        left join projects as its_project
            on its_project.name = notification.project
        left join campaigns as its_campaign
            on its_campaign.name = notification.campaign
        where notification.id = any (notification_ids)
            and notification.state = 'pending'
    ), unsendable as (
        select
            id,
            case reason when 'expired' then 'expired' when 'retired' then 'cancelled' else 'failed' end as state,
            case reason
                when 'no project' then format('there is no project "%s"', project)
                    || nearest(project, (select array_agg(name) from projects))
                when 'expired' then 'it expired before it could be sent'
                when 'retired' then format('the campaign "%s" is retired', campaign)
                when 'no campaign' then format('there is no campaign "%s"', campaign)
                    || nearest(campaign, (select array_agg(name) from campaigns))
                else 'words, params, data and message take more than 64 KB'
            end as because
        from judged
        where reason is not null
    ), ended as (
        update stored_deliveries as delivery
        set state = unsendable.state,
            last_verdict = null,
            last_error_code = null,
            last_error = unsendable.because,
            settled_at = at
        from unsendable
        where delivery.notification_id = unsendable.id
            and delivery.state = 'pending'
    ), settled as (
        update notifications as notification
        set state = unsendable.state,
            settled_at = at,
            settled_because = unsendable.because
        from unsendable
        where notification.id = unsendable.id
            and notification.expanded_at is null
    )
    select array_agg(id) into unsendable_ids from unsendable;
    perform settle(unsendable_ids);
end
$$;
COMMENT ON FUNCTION notify_worker.settle_unsendable(notification_ids bigint[]) IS 'Settles the notifications that can''t be sent: expired, campaign retired, campaign or project missing, too big.';

CREATE FUNCTION notify_worker.somebody_writes() RETURNS boolean
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select exists (
        select from pg_locks
        where locktype = 'relation'
            and database = (select oid from pg_database where datname = current_database())
            and relation = 'notify_worker.notifications'::regclass
            and mode = 'RowExclusiveLock'
            and granted
            and pid is distinct from pg_backend_pid()   -- a prepared transaction has no pid
    )
$$;
COMMENT ON FUNCTION notify_worker.somebody_writes() IS 'Says whether another session holds the outbox in ROW EXCLUSIVE mode; asked before a worker sleeps.';

CREATE FUNCTION notify_worker.something_is_due() RETURNS boolean
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select exists (select from projects_due(clock_timestamp()))
$$;
COMMENT ON FUNCTION notify_worker.something_is_due() IS 'Says whether a notification of a project that is not paused is due.';

CREATE FUNCTION notify_worker.stay_awake() RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select setval('notify_worker.awake_until', (now.milliseconds + 200)::bigint)
    from (select date_part('epoch', clock_timestamp()) * 1000 as milliseconds) as now
    where coalesce(pg_sequence_last_value('notify_worker.awake_until') - now.milliseconds, 0) not between 100 and 300
$$;
COMMENT ON FUNCTION notify_worker.stay_awake() IS 'Says for the next 200 ms that a worker is awake and looks: statements need not ring.';

CREATE FUNCTION notify_worker.still_here(worker_ids integer[]) RETURNS SETOF integer
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    update stored_workers
    set seen_at = clock_timestamp()
    where id = any (still_here.worker_ids)
        and ended_at is null
    returning id
$$;
COMMENT ON FUNCTION notify_worker.still_here(worker_ids integer[]) IS 'A worker says that it lives, under each id that it has or had. Returns those that still are its own.';

CREATE FUNCTION notify_worker.stops(scope text, delivery notify_worker.stored_deliveries) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $$
    select case scope
        when 'project' then true
        when 'apns_web' then coalesce(delivery.platform in ('ios', 'web'), false)
        when 'topics' then delivery.kind in ('topic', 'condition')
        else false
    end
$$;
COMMENT ON FUNCTION notify_worker.stops(scope text, delivery notify_worker.stored_deliveries) IS 'Says whether an incident of this scope stops a delivery.';

CREATE FUNCTION notify_worker.suspects(reconnected_ago double precision DEFAULT NULL::double precision) RETURNS TABLE(worker_id integer, seen_at timestamp with time zone, patience double precision)
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    select
        worker.id,
        worker.seen_at,
        case
            when worker.locks and worker.seen_at > greatest(
                pg_postmaster_start_time(),
                (select stats_reset from pg_stat_bgwriter),     -- a crash resets them, and it leaves the start time as it was
                pg_last_xact_replay_timestamp(),
                clock_timestamp() - make_interval(secs => suspects.reconnected_ago)
            ) then 3
            else date_part('epoch', worker.lease_length) / 2
        end
    from stored_workers as worker
    where worker.ended_at is null
        and not exists (
            select from pg_locks
            where locktype = 'advisory'
                and database = (select oid from pg_database where datname = current_database())
                and classid = presence_key()::oid
                and objid = worker.id::oid
                and objsubid = 2
        )
$$;
COMMENT ON FUNCTION notify_worker.suspects(reconnected_ago double precision) IS 'Lists the workers that may be dead, and for how many seconds that has to stay so until they are.';

CREATE FUNCTION notify_worker.sweep_jobs() RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
declare
    left_behind bigint[];
begin
    select array_agg(id) into left_behind
    from (
        select job.id
        from procrastinate_jobs as job
        left join procrastinate_workers as process
            on process.id = job.worker_id
        where job.status = 'doing'
            and job.queue_name = 'notify_worker'
            and (process.id is null or process.last_heartbeat < now() - interval '2 minutes')
        for update of job skip locked
    ) as job;
    if left_behind is null then
        return 0;
    end if;

    delete from procrastinate_jobs
    where id = any (left_behind)
        and task_name in ('notify_worker.drain', 'notify_worker.requeue_orphans');
    perform procrastinate_retry_job_v2(id, now(), null, null, null)
    from procrastinate_jobs
    where id = any (left_behind);
    return cardinality(left_behind);
end
$$;
COMMENT ON FUNCTION notify_worker.sweep_jobs() IS 'Takes care of jobs that a dead process left as doing: bells are deleted, other tasks put back.';

CREATE FUNCTION notify_worker.take_down_bells() RETURNS bigint
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    with waiting as (
        select id
        from procrastinate_jobs
        where status = 'todo'
            and queue_name = 'notify_worker'
            and task_name = 'notify_worker.drain'
            and (scheduled_at is null or scheduled_at <= clock_timestamp())
        order by priority desc, id
        limit 500
        for update skip locked
    ), taken_down as (
        delete from procrastinate_jobs
        using waiting
        where procrastinate_jobs.id = waiting.id
        returning procrastinate_jobs.id
    )
    select count(*) from taken_down
$$;
COMMENT ON FUNCTION notify_worker.take_down_bells() IS 'Deletes the bells that wait: whoever claims after this answers them all.';

CREATE FUNCTION notify_worker.take_over(notification_ids bigint[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
begin
    if notification_ids is null then
        return;
    end if;
    perform apply_history(notification_ids);

    insert into stored_attempts
        (delivery_id, notification_id, number, lease, worker, started_at, verdict, error_code, error, retry_at, counts)
    select
        delivery.id,
        notification.id,
        delivery.tries + 1,
        notification.lease,
        coalesce(worker.name, notification.leased_by::text),
        notification.leased_at,
        'unknown',
        'WORKER_GONE',
        'the worker was gone before it could say what became of this',
        case when notification.on_unknown = 'resend' or delivery.marked_by is distinct from notification.lease then clock_timestamp() end,
        false
    from notifications as notification
    join stored_deliveries as delivery
        on delivery.notification_id = notification.id
    left join stored_workers as worker
        on worker.id = notification.leased_by
    where notification.id = any (notification_ids)
        and notification.lease is not null
        and delivery.state = 'pending'
        and delivery.due_at <= notification.leased_at;

    if found then
        perform apply_history(notification_ids);
    end if;
    perform settle(notification_ids);
end
$$;
COMMENT ON FUNCTION notify_worker.take_over(notification_ids bigint[]) IS 'The leases of these notifications are over: the history is applied, and what it does not hold is written down as unknown.';

CREATE FUNCTION notify_worker.touch_devices(outcomes jsonb) RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
    with addressed as materialized (
        select outcome.verdict, outcome.started_ago, notification.project, delivery.kind, delivery.address
        from outcomes_of(outcomes) as outcome
        cross join lateral (select * from stored_deliveries where id = outcome.delivery_id offset 0) as delivery
        cross join lateral (select project from notifications where id = delivery.notification_id offset 0) as notification
        where outcome.verdict in ('sent', 'unregistered')
    ), told as (
        select device.id, outcome.verdict
        from addressed as outcome
        join devices as device
            on device.project = outcome.project
            and device.kind = outcome.kind
            and device.address = outcome.address
        where device.retired_at is null
            and not (outcome.verdict = 'unregistered' and exists (
                select from stored_incidents as incident
                where incident.project = outcome.project
                    and incident.scope = 'devices'
                    and incident.ended_at is null
            ))
            and case outcome.verdict
                when 'unregistered' then device.registered_at <= statement_timestamp() - make_interval(secs => outcome.started_ago)
                when 'sent' then device.seen_at < clock_timestamp() - interval '1 day'
            end
        order by device.id
        for update of device skip locked
    )
    update devices as device
    set seen_at = case when told.verdict = 'sent' then clock_timestamp() else device.seen_at end,
        retired_at = case when told.verdict = 'unregistered' then clock_timestamp() end,
        retired_because = case when told.verdict = 'unregistered' then 'FCM calls it unregistered' end
    from told
    where device.id = told.id
$$;
COMMENT ON FUNCTION notify_worker.touch_devices(outcomes jsonb) IS 'An address that FCM calls unregistered is retired; one that was sent to has been seen.';

CREATE FUNCTION notify_worker.wake() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'notify_worker', 'pg_temp'
    AS $$
begin
    -- The documented `select last_value` costs twice as much here. Null (never set, or a crash) rings too: the safe side.
    if pg_sequence_last_value('notify_worker.awake_until') > date_part('epoch', clock_timestamp()) * 1000
        and current_setting('notify_worker.bell', true) is distinct from 'always'
    then
        return null;
    end if;
    if current_setting('notify_worker.bell', true) is distinct from 'off' then
        perform ring(current_setting('notify_worker.bell', true) = 'always');
    end if;
    return null;
end
$$;
COMMENT ON FUNCTION notify_worker.wake() IS 'A statement that commits notifications has a worker''s ear: a worker is awake, or the statement defers one job.';

CREATE FUNCTION notify_worker.words_are_too_big(notification notify_worker.notifications, campaign notify_worker.campaigns) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    select 65536 < coalesce(octet_length(notification.title), 0)
        + coalesce(octet_length(notification.body), 0)
        + coalesce(octet_length(notification.image), 0)
        + coalesce(octet_length(notification.params::text), 0)
        + coalesce(octet_length(notification.data::text), 0)
        + coalesce(octet_length(notification.message::text), 0)
        + coalesce(octet_length(campaign.title), 0)
        + coalesce(octet_length(campaign.body), 0)
        + coalesce(octet_length(campaign.image), 0)
        + coalesce(octet_length(campaign.data::text), 0)
        + coalesce(octet_length(campaign.message::text), 0)
$$;
COMMENT ON FUNCTION notify_worker.words_are_too_big(notification notify_worker.notifications, campaign notify_worker.campaigns) IS 'Says whether a notification and its campaign hold more than 64 KB of words.';


CREATE TRIGGER check_campaign BEFORE INSERT OR UPDATE ON notify_worker.campaigns FOR EACH ROW EXECUTE FUNCTION notify_worker.check_campaign();

CREATE TRIGGER check_credentials BEFORE INSERT OR UPDATE ON notify_worker.projects FOR EACH ROW EXECUTE FUNCTION notify_worker.check_credentials();

CREATE TRIGGER check_device BEFORE INSERT OR UPDATE ON notify_worker.devices FOR EACH ROW EXECUTE FUNCTION notify_worker.check_device();

CREATE TRIGGER check_notification BEFORE INSERT ON notify_worker.notifications FOR EACH ROW EXECUTE FUNCTION notify_worker.check_notification();

CREATE TRIGGER wake AFTER INSERT ON notify_worker.notifications FOR EACH STATEMENT EXECUTE FUNCTION notify_worker.wake();
