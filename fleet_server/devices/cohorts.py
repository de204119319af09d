"""Labels and selectors: which cohort a device is in. Pure.

A device is in exactly one cohort: among those whose selector its labels meet, the one with the
highest priority, and by name where two are equal. The cohort ``default`` takes whoever is left.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fleet_contract import names
from fleet_contract.errors import InvalidName
from fleet_server.errors import Invalid

DEFAULT = "default"
LABELS = 32
VALUES = 64
MAX_PRIORITY = 1_000_000
_KEY = re.compile(r"^[a-z0-9][a-z0-9._/-]{0,62}\Z")
_VALUE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")

Selector = Mapping[str, str | list[str]]
"""Label → the value it must have, or the values of which it must have one."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """A named, prioritised selector."""

    name: str
    selector: Selector
    priority: int

    def takes(self, labels: Mapping[str, str]) -> bool:
        """Whether a device with these labels matches."""
        return all(
            labels.get(key) in ([wanted] if isinstance(wanted, str) else wanted)
            for key, wanted in self.selector.items()
        )


def cohort_for(labels: Mapping[str, str], cohorts: Iterable[Cohort]) -> str:
    """Return the name of the cohort that a device with these labels is in."""
    matching = [
        (-cohort.priority, cohort.name)
        for cohort in cohorts
        if cohort.name != DEFAULT and cohort.takes(labels)
    ]
    return min(matching)[1] if matching else DEFAULT


def check_name(name: str, what: str) -> str:
    """Return a name that may be on the wire.

    Raises:
        Invalid: otherwise; a path is none, whatever it points to.
    """
    try:
        return names.check_identity(name, what)
    except InvalidName as error:
        raise Invalid("invalid_name", f"{error}.") from error


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels that a device may have.

    Raises:
        Invalid: otherwise.
    """
    if len(labels) > LABELS:
        raise Invalid("too_many_labels", f"A device has at most {LABELS} labels.")
    for key, value in labels.items():
        _check_key(key)
        _check_value(key, value)
    return dict(labels)


def check_cohort(name: str, selector: Selector, priority: int) -> Cohort:
    """Return a cohort that an operator may create.

    Raises:
        Invalid: otherwise.
    """
    check_name(name, "cohort")
    if name == DEFAULT:
        raise Invalid(
            "reserved_name",
            "The cohort default always exists: it takes whoever no other cohort takes.",
            "Choose another name.",
        )
    if not selector:
        raise Invalid(
            "empty_selector",
            "A cohort without a selector would take every device.",
            "Name at least one label, for example site=lab.",
        )
    if len(selector) > LABELS:
        raise Invalid("too_many_labels", f"A selector names at most {LABELS} labels.")
    if not 1 <= priority <= MAX_PRIORITY:
        raise Invalid("bad_priority", f"A priority is a number from 1 to {MAX_PRIORITY}.")
    for key, wanted in selector.items():
        _check_key(key)
        values = [wanted] if isinstance(wanted, str) else wanted
        if not 1 <= len(values) <= VALUES:
            raise Invalid("bad_selector", f"Name 1 to {VALUES} values for label {key}.")
        for value in values:
            _check_value(key, value)
    return Cohort(name, dict(selector), priority)


def _check_key(key: str) -> None:
    if not _KEY.match(key):
        raise Invalid(
            "invalid_label",
            f"The label {key[:80]!r} is not allowed.",
            "Use 1 to 63 of a-z, 0-9, '.', '_', '/' and '-', starting with a letter or digit.",
        )


def _check_value(key: str, value: str) -> None:
    if not _VALUE.match(value):
        raise Invalid(
            "invalid_label",
            f"The value {value[:80]!r} of label {key} is not allowed.",
            "Use 1 to 63 of letters, digits, '.', '_' and '-', starting with a letter or digit.",
        )
