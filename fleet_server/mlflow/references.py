"""How a model in an MLflow server is named, in MLflow's own words.

Decides which forms are understood: ``models:/NAME/VERSION``, ``models:/NAME@ALIAS`` and
``runs:/RUN/PATH``, each behind ``mlflow:``. Stages of MLflow's registry and ``latest`` are not: an
alias says the same, and on purpose. Source of the forms:
https://mlflow.org/docs/latest/ml/model-registry/
"""

import re
from dataclasses import dataclass

from fleet_server.errors import Invalid

SCHEME = "mlflow:"
_NAME = r"[^/:@\x00-\x1f\x7f]{1,200}"
_VERSION = re.compile(rf"^models:/(?P<name>{_NAME})/(?P<version>[1-9][0-9]{{0,8}})\Z")
_ALIAS = re.compile(rf"^models:/(?P<name>{_NAME})@(?P<alias>[A-Za-z0-9_.-]{{1,255}})\Z")
_RUN = re.compile(r"^runs:/(?P<run>[A-Za-z0-9]{1,64})/(?P<path>[^\x00-\x1f\x7f]{1,400})\Z")


@dataclass(frozen=True, slots=True)
class Registered:
    """A version of a registered model, by its number or by an alias; the other one is empty."""

    name: str
    version: str = ""
    alias: str = ""


@dataclass(frozen=True, slots=True)
class OfRun:
    """What a run logged under a path."""

    run: str
    path: str


def read_reference(text: str) -> Registered | OfRun:
    """Return what the reference names.

    Raises:
        Invalid: if it is none of the forms.
    """
    inner = text.removeprefix(SCHEME)
    if text.startswith(SCHEME):
        if found := _VERSION.match(inner):
            return Registered(found["name"], version=found["version"])
        if found := _ALIAS.match(inner):
            return Registered(found["name"], alias=found["alias"])
        found = _RUN.match(inner)
        if found and all(part not in ("", ".", "..") for part in found["path"].split("/")):
            return OfRun(found["run"], found["path"])
    raise Invalid(
        "bad_reference",
        f"{text[:100]!r} names no model of an MLflow registry.",
        "Write mlflow:models:/NAME/VERSION, mlflow:models:/NAME@ALIAS or mlflow:runs:/RUN/PATH.",
    )
