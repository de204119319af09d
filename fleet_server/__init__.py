"""The fleet server: one package per domain, wired together in ``app.py``."""
