"""A run's copy elsewhere, on a drive's folder or the Hub, and back on an empty machine."""
