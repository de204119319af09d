"""The errors of the simulator."""


class SimulatorError(Exception):
    """Something that a simulated fleet or the demo was to do did not happen; says what."""
