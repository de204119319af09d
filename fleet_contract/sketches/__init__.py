"""Sketches of what a device sees: small, and exact under merging, since they hold integers."""
