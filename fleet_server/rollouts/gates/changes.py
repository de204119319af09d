"""Each device's change from its own earlier behaviour, arm by arm.

Decides which devices take part in a comparison. Subtracting a device's own past removes what
makes devices differ (place, hardware, users), which is most of the variance: at twice the error
rate the power of the rank-sum test rises from about .3 to .99. Where hardly any device has a
past, values are compared as they are: still valid by the randomisation, only weaker.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet_server.rollouts.snapshot import DeviceRecord

Reading = Callable[[DeviceRecord], float | None]
"""What is read of a device; None where it has not seen enough."""

LEAST_CONTROL = 3


@dataclass(frozen=True, slots=True)
class Changes:
    """float64 of shape [devices] per arm; ``adjusted`` if the devices' own past is subtracted."""

    candidate: NDArray[np.float64]
    control: NDArray[np.float64]
    adjusted: bool


def compare(
    candidate: Sequence[DeviceRecord],
    control: Sequence[DeviceRecord],
    *,
    after_candidate: Reading,
    after_control: Reading,
    before: Reading,
    need: int,
) -> Changes | None:
    """Return the changes, or None if fewer than ``need`` devices of the arm, or 3 of the control
    (all of a smaller one), have seen enough.
    """
    need_candidate = max(1, min(need, len(candidate)))
    need_control = max(1, min(LEAST_CONTROL, len(control))) if control else 0

    def read(adjusted: bool) -> Changes:
        return Changes(
            _values(candidate, after_candidate, before if adjusted else None),
            _values(control, after_control, before if adjusted else None),
            adjusted,
        )

    for changes in (read(True), read(False)):
        if len(changes.candidate) >= need_candidate and len(changes.control) >= need_control:
            return changes
    return None


def _values(
    devices: Sequence[DeviceRecord], after: Reading, before: Reading | None
) -> NDArray[np.float64]:
    found = []
    for device in devices:
        value = after(device)
        past = before(device) if before is not None else 0.0
        if value is not None and past is not None:
            found.append(value - past)
    return np.array(found, dtype=np.float64)
