"""Whole fleets: in virtual time, live over a real broker, and the demo."""
