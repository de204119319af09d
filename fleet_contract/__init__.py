"""What the fleet server and the device agent must agree on, byte for byte.

Topics, messages, the release manifest, trust (envelope, keyset, directive and its ordered
checks), buckets and sketches live here. Everything is pure: bytes and values in, values or one
of the errors of :mod:`fleet_contract.errors` out. No clock, no randomness, no I/O.
"""

WIRE_VERSION = 1
"""Version of the wire spoken by this package; peers accept this one and the one before."""
