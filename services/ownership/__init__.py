"""See the README for what this service does."""
