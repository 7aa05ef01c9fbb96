"""Postgres: engines, transactions and migrations, the same way in every service that owns tables."""
