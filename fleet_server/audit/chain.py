"""The hash chain: how a record becomes bytes, what binds it to the one before, what is a break.

A record is canonical JSON: ASCII, keys sorted, no spaces, no floating-point infinities. It holds
its own sequence and the SHA-256 of the record before, so altering, removing or moving one breaks
the chain at the next; the newest is held by the head and by signed checkpoints. Nothing here
reads a database.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

GENESIS = "0" * 64
"""What the first record names as the one before."""
FINDINGS_MOST = 100


@dataclass(frozen=True, slots=True)
class Link:
    """A record as it is kept: its place, its text, and the hash that was kept with it."""

    sequence: int
    text: str
    kept_hash: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """What is kept beside the text for searching; it has to agree with it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written."""

    sequence: int
    problem: str


def seal(fields: Mapping[str, Any], *, sequence: int, previous: str) -> tuple[str, str]:
    """Return a record's text and hash.

    Raises:
        ValueError: if a field is no JSON.
    """
    text = canonical({**fields, "sequence": sequence, "previous": previous})
    return text, digest(text)


def canonical(document: Mapping[str, Any]) -> str:
    """Return the one text that a document has."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(text: str) -> str:
    """Return the hash that binds the next record to this one."""
    return hashlib.sha256(text.encode("ascii", "replace")).hexdigest()


class Walk:
    """Walks along a chain and collects what is wrong with it.

    Attributes:
        sequence: of the last record seen.
        hash: of that record, computed from its text.
        findings: the first of what was found, at most a hundred.
    """

    def __init__(self, wanted: Iterable[int] = ()) -> None:
        self.sequence = 0
        self.hash = GENESIS
        self.findings: list[Finding] = []
        self.hashes: dict[int, str] = {}
        """Of the records whose sequence was wanted."""
        self._wanted = frozenset(wanted)
        self._kept = GENESIS

    def step(self, link: Link) -> None:
        """Look at the next record."""
        if link.sequence != self.sequence + 1:
            self.find(self.sequence + 1, f"missing: the next record is {link.sequence}")
        computed = digest(link.text)
        if computed != link.kept_hash:
            self.find(link.sequence, "altered: it does not have the hash that was kept with it")
        record = _read(link.text)
        if record is None or canonical(record) != link.text:
            self.find(link.sequence, "altered: it is no record")
        else:
            if record.get("sequence") != link.sequence:
                self.find(link.sequence, f"moved: it was written as {record.get('sequence')}")
            if record.get("previous") != self._kept:
                self.find(link.sequence, "the record before is not the one that was there")
            for name, value in link.columns.items():
                if record.get(name) != value:
                    self.find(link.sequence, f"altered: {name} is not what the record says")
        self.sequence, self.hash, self._kept = link.sequence, computed, computed
        if link.sequence in self._wanted:
            self.hashes[link.sequence] = computed

    def end(self, head_sequence: int, head_hash: str) -> None:
        """Compare the end of the chain with its head."""
        if (self.sequence, self.hash) != (head_sequence, head_hash):
            self.find(head_sequence, f"the chain ends at {self.sequence}, not at its head")

    def find(self, sequence: int, problem: str) -> None:
        """Keep a finding."""
        if len(self.findings) < FINDINGS_MOST:
            self.findings.append(Finding(sequence, problem))


def links(lines: Iterable[str]) -> Iterator[Link]:
    """Return the records of an export as a chain that is held together by itself alone."""
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\n")
        record = _read(text)
        sequence = record.get("sequence") if record is not None else None
        yield Link(sequence if isinstance(sequence, int) else number, text, digest(text))


def _read(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
