"""The gates: each judges one guardrail of a snapshot, and decides nothing else.

A gate is a pure function of a snapshot and its part of alpha. The device is the unit throughout:
predictions of one device are correlated, and a test that pools them raises false alarms in up to
half of all rollouts. What follows from the verdicts is decided in
:mod:`fleet_server.rollouts.decide`.
"""
