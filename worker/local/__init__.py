"""One machine: Postgres and Valkey from wheels, and the supervisor behind `up`."""
