"""What can become of a patch."""

from enum import StrEnum


class DeltaState(StrEnum):
    """Devices find only what was made; the other two are kept so as not to be tried each time."""

    MADE = "made"
    NOT_WORTH = "not_worth"
    """It would be above 70% of the artifact: devices download that."""
    FAILED = "failed"
