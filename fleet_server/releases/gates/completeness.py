"""Gate: the release says of itself what the installation demands: licence, owner, and so on.

Which fields are needed is a setting. A field counts as missing if it is empty, or if there is no
such field; ``notes.NAME`` asks for one of the notes, ``evaluation_rows`` for labelled rows.
"""

from collections.abc import Mapping

from fleet_server.releases.gates.given import Given
from fleet_server.releases.states import GateResult

NAME = "metadata"
ADVICE = (
    "Add them to the metadata of the push; EDGEFLEET_REQUIRED_METADATA on the server lists what it "
    "needs."
)


def judge(given: Given) -> list[GateResult]:
    """Return how many of the required fields are missing; nothing where none is required."""
    if not given.required_metadata:
        return []
    missing = [name for name in given.required_metadata if not _there(given.metadata, name)]
    named = f": {', '.join(missing)}"[:400] if missing else ""
    note = f"{len(missing)} of {len(given.required_metadata)} required fields are missing{named}."
    return [GateResult(NAME, "missing_fields", len(missing), 0, not missing, note)]


def _there(metadata: Mapping[str, object], name: str) -> bool:
    found: object = metadata
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, str):
        return bool(found.strip())
    # Zero is an answer: a training may have taken no time.
    return found is not None and found not in ([], {})
