"""The life of a worker process: it starts, wakes up, polls, stops, and rescues the deliveries of dead workers."""
