"""The MQTT brokers of a fleet server: an embedded one, a private Mosquitto, or one elsewhere.

Reading order: ``packets`` and ``codec`` (the wire), ``core`` (what a broker decides, sans-io),
``listener`` (sockets around the core), ``mosquitto`` and ``choice`` (which broker runs),
``client`` (the lean client of live fleets and benchmarks). Section numbers in comments are
those of the OASIS standard "MQTT Version 5.0".
"""
