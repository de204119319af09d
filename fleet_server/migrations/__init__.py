"""The database's form, version by version, and the tables of every domain as one metadata.

Alembic runs ``env.py`` and ``versions/`` by path. A changed table comes with a new file there;
tests/fleet_server/migrations fails when the tables and the migrations disagree.
"""
