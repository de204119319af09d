"""The errors of the device agent; foreign exceptions are wrapped at its borders."""


class AgentError(Exception):
    """Root of everything that the agent raises."""
