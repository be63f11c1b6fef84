"""Run everything on one machine: Postgres and Valkey from wheels, and the supervisor of `up`."""
