"""For development and trying out: the demo, its shop, and an embedded PostgreSQL."""
