"""Telemetry: the windows that devices report, kept per device.

Fleet sums cannot support a decision, so every device's windows are stored as they came. What they
mean for a rollout is decided by its gates.
"""
