"""Releases: from a float model that somebody uploads to signed files that devices may run.

Releases belong to no fleet: the same one goes through development, staging and production.
"""
