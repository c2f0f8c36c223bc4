-- The first half of the advisory lock that a worker's session holds while it lives; the second is the worker's id.
create or replace function notify_worker.presence_key() returns integer language sql immutable as 'select 1853321330';
comment on function notify_worker.presence_key is 'The first half of the advisory lock that a worker''s session holds while it lives.';
