"""The read side: what readers see of the credit ledger. Knows nothing of Celery."""
