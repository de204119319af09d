"""The secret that an HSM wants before it signs: from the environment, or from whoever is asked.

It is kept in memory alone, and nothing here writes it anywhere.
"""

import os
from collections.abc import Callable

VARIABLE = "EDGEFLEET_HSM_PIN"

Ask = Callable[[str], str]
"""Called with what is wanted ("pin"); returns the secret."""


def from_environment(what: str) -> str:
    """Return the secret that the environment holds.

    Raises:
        ValueError: if it holds none.
    """
    held = os.environ.get(VARIABLE, "")
    if not held:
        raise ValueError(f"{VARIABLE} is not set, and the key asks for its {what[:20]}")
    return held
