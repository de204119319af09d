"""Backups: everything that a server is made of in one file, and a server made of it again.

The file is data of strangers until its sums are checked. What devices must hear after a restore is
decided in :mod:`.recovery`.
"""
