"""From a batch of entries to movements in Postgres."""
