"""Dispatch: what the broker must hold, and what devices send, between the database and MQTT.

The publisher makes the broker agree with rows of desired state; ingest brings messages of devices
into the database. Which state is desired and what a message means is decided by other domains.
"""
