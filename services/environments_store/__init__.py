"""The `environments-store` service: soft-delete CRUD over PostgreSQL or SQLite."""
