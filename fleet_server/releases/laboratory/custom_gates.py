"""The installation's own gates: finds them, and lets one judge inside a laboratory's child.

Decides what a gate may return. Only the metadata of installed packages is read in the server;
their code is loaded in the child. What the end of a child means is decided by
:mod:`fleet_server.releases.measuring`.
"""

import math
from collections.abc import Mapping
from importlib.metadata import entry_points
from types import MappingProxyType

from fleet_server.releases.examples import Rows
from fleet_server.releases.gates.custom import GROUP, Finding, Submission
from fleet_server.releases.laboratory.tasks import Ask, Asked, Said
from fleet_server.releases.states import Refusal

ROW_GROUPS = (
    *("golden", "golden_outputs", "float_outputs", "baseline", "baseline_outputs"),
    *("evaluation", "labels", "slices", "evaluation_outputs", "production_outputs"),
)
"""The arrays of a submission, by group."""
MOST_FINDINGS = 32
_TEXT = 500


def installed() -> list[str]:
    """Return the names of the installed gates, in order."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def ask(task: Ask, groups: Mapping[str, Rows]) -> Asked:
    """Load a gate and let it judge; runs inside a child.

    Raises:
        Refusal: if it fails or returns anything but findings.
    """
    point = next((p for p in entry_points(group=GROUP) if p.name == task.gate), None)
    if point is None:
        raise _broke("it is not installed where models are tried")
    submission = Submission(
        model=task.release,
        version=task.version,
        kind=task.kind.value,
        artifact=task.artifact,
        float_model=task.float_model,
        **{name: MappingProxyType(dict(groups.get(name, {}))) for name in ROW_GROUPS},
    )
    try:
        findings = list(point.load()(submission))
    except Exception as error:  # whatever somebody else's code raises
        raise _broke(f"{type(error).__name__}: {str(error)[:300]}") from error
    if not findings or len(findings) > MOST_FINDINGS:
        raise _broke(f"it returned {len(findings)} findings; 1 to {MOST_FINDINGS} are asked for")
    return Asked([_said(found) for found in findings])


def _said(found: object) -> Said:
    if not isinstance(found, Finding):
        raise _broke(f"it returned {type(found).__name__}, no Finding")
    return Said(
        str(found.name)[:120],
        _number(found.figure),
        _number(found.bound),
        bool(found.passed),
        str(found.note)[:_TEXT],
    )


def _number(value: float | None) -> float | None:
    """A figure that is not finite cannot be written down."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _broke(why: str) -> Refusal:
    return Refusal("custom", "custom_gate_broke", why, "Mend the gate.")
