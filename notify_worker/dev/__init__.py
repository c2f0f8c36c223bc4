"""For trying and testing: the demo, the shop that it is about, and an embedded PostgreSQL."""
