"""What the pusher says of a release beside the model: bounded here, believed nowhere.

Decides the form of each statement, which of them are locations that a setting has to allow, and
which go into the release's lineage and into the signed statement of its making. All of it is shown,
searched and reported; nothing of it opens a door.
"""

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract import codec
from fleet_contract.names import Digest
from fleet_server.releases import limits

WORD_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}\Z"
# Nothing that a terminal or a log would take for a command.
CLASS_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]{1,80}\Z"
NAME_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]{1,250}\Z"
TAG_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:=/-]{0,62}\Z"
_SPDX = r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}\+?"
LICENCE_PATTERN = rf"^{_SPDX}( (AND|OR|WITH) {_SPDX}){{0,8}}\Z"
COMMIT_PATTERN = r"^[0-9a-f]{7,64}\Z"
HASH_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:+/=-]{0,199}\Z"
RUN_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
ORIGIN_PATTERN = r"^[A-Za-z][A-Za-z0-9:/._@%+ -]{0,499}\Z"

LONGEST_TRAINING_MS = 10 * 366 * 86_400_000

Word = Annotated[str, Meta(pattern=WORD_PATTERN)]
ClassName = Annotated[str, Meta(pattern=CLASS_PATTERN)]
Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Tag = Annotated[str, Meta(pattern=TAG_PATTERN)]
Location = Annotated[str, Meta(max_length=1000)]
Value = (
    Annotated[str, Meta(max_length=limits.PARAMETER_CHARACTERS)]
    | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    | float
    | bool
)


class Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``classes`` names the columns of the first output in order; ``notes`` are for people.

    ``sources`` say where code and data lie and ``datasets`` which data sets it was trained on, both
    as locations below the allowed beginnings. ``licence`` is an SPDX identifier or expression
    (https://spdx.org/licenses/), ``dataset_hash`` is in the words of whatever made it,
    ``environment_lock`` is the SHA-256 of the lock file that the training ran with. ``run_id`` and
    ``imported_from`` name the run and the registry's entry that it was taken from.
    """

    classes: Annotated[list[ClassName], Meta(max_length=limits.CLASSES)] = []
    notes: Annotated[dict[Word, Annotated[str, Meta(max_length=2000)]], Meta(max_length=50)] = {}
    sources: Annotated[dict[Word, Location], Meta(max_length=20)] = {}
    datasets: Annotated[dict[Word, Location], Meta(max_length=limits.DATASETS)] = {}
    dataset_hash: Annotated[str, Meta(pattern=HASH_PATTERN)] | None = None
    hyperparameters: Annotated[dict[Name, Value], Meta(max_length=limits.PARAMETERS)] = {}
    metrics: Annotated[dict[Name, float], Meta(max_length=limits.PARAMETERS)] = {}
    git_commit: Annotated[str, Meta(pattern=COMMIT_PATTERN)] | None = None
    training_ms: Annotated[int, Meta(ge=0, le=LONGEST_TRAINING_MS)] | None = None
    tags: Annotated[list[Tag], Meta(max_length=limits.TAGS)] = []
    licence: Annotated[str, Meta(pattern=LICENCE_PATTERN)] | None = None
    owner: Annotated[str, Meta(pattern=CLASS_PATTERN)] | None = None
    environment_lock: Digest | None = None
    run_id: Annotated[str, Meta(pattern=RUN_PATTERN)] | None = None
    imported_from: Annotated[str, Meta(pattern=ORIGIN_PATTERN)] | None = None

    @property
    def locations(self) -> list[tuple[str, str]]:
        """What has to lie below an allowed beginning: what it is, and where it lies."""
        return [
            (f"location of {kind} {name!r}", where)
            for kind, listed in (("source", self.sources), ("data set", self.datasets))
            for name, where in listed.items()
        ]


class Brief(msgspec.Struct, frozen=True, omit_defaults=True):
    """The single facts among the metadata: what fits into a line each."""

    dataset_hash: str | None = None
    git_commit: str | None = None
    licence: str | None = None
    owner: str | None = None
    environment_lock: str | None = None
    run_id: str | None = None
    imported_from: str | None = None


def stated(metadata: Metadata) -> dict[str, str]:
    """Return what the signed statement says of the metadata: its single facts by name, and the
    SHA-256 of all of it as JSON in the order of the names, so that none of it can change unnoticed.
    """
    if metadata == Metadata():
        return {}
    brief: dict[str, str] = msgspec.to_builtins(
        msgspec.convert(metadata, Brief, from_attributes=True)
    )
    return {**brief, "metadata_sha256": hashlib.sha256(codec.encode_json(metadata)).hexdigest()}
