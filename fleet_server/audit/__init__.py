"""Who did what, when, and what the system decided by itself."""
