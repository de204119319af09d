"""The agent's decisions: ``(state, event, now) -> (state, effects)``.

Pure: no clock, no randomness, no I/O. The shell feeds events in and performs the effects in order;
the simulator drives the very same functions in virtual time.
"""
