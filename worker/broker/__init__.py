"""Celery's wiring: the app and its consumer."""
