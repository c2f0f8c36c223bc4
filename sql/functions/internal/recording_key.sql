-- The first half of the advisory lock that `record` holds until its commit, so that nobody takes over a lease whose outcome
-- is on its way into the history; the second is the worker's id.
create or replace function notify_worker.recording_key() returns integer language sql immutable as 'select 1853321331';
comment on function notify_worker.recording_key is 'The first half of the advisory lock that record holds until its commit.';
