"""The fleet's keys, and what they sign."""
