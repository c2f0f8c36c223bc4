-- Returns the class of the advisory lock that a worker's session holds while it is alive; the object is the worker's id.
create or replace function notify_worker.presence_lock_class() returns integer language sql immutable as 'select 1853321330';
