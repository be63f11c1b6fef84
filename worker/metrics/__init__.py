"""What Prometheus scrapes of the write side."""
