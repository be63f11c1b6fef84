"""Create and change the database's schema and roles."""
