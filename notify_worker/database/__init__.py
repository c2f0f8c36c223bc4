"""How a process talks to PostgreSQL: its connections, the worker's SQL calls, the schema and its migrations."""
