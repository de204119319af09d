"""Between which artifacts patches are worth making.

Decides from the newest releases and from what the devices run: to each of the newest, and to each
that is kept ready in production, from those that most devices have. A pure function; the shell
makes what is missing and drops what is no longer in the plan, so that patches never grow without
bound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fleet_contract.manifest import FileRef, Variant

TARGETS = 2
"""A rollout goes to the newest release, or back to the one before."""
SOURCES = 5
"""Above that, a patch serves a small rest of the fleet."""


@dataclass(frozen=True, slots=True)
class Release:
    """What is known of a staged release here. ``digest`` is its manifest's."""

    model: str
    version: str
    counter: int
    digest: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """One patch to be made: from an artifact of one release to one of another."""

    model: str
    old_version: str
    new_version: str
    old: FileRef
    new: FileRef


def plan(
    newest: Sequence[Release],
    others: Sequence[Release],
    running: Mapping[str, int],
    kept: Sequence[Release] = (),
) -> list[Delta]:
    """Return the patches of one model, the most useful first.

    Args:
        newest: its newest releases, the newest first; patches lead to the first ``TARGETS``.
        others: its other releases that devices run.
        running: manifest digest → on how many devices it is active.
        kept: releases that have to be ready; patches lead to them as well.
    """
    known = {release.digest: release for release in (*newest, *others, *kept)}
    by_use = sorted(
        known.values(), key=lambda release: (-running.get(release.digest, 0), -release.counter)
    )
    planned: dict[tuple[str, str], Delta] = {}
    targets = {release.digest: release for release in (*newest[:TARGETS], *kept)}
    for target in targets.values():
        for source in [release for release in by_use if release.digest != target.digest][:SOURCES]:
            for variant in target.variants:
                old = _counterpart(variant, source.variants)
                key = (old.digest, variant.artifact.digest) if old is not None else ("", "")
                if old is not None and old.digest != variant.artifact.digest and key not in planned:
                    planned[key] = Delta(
                        target.model, source.version, target.version, old, variant.artifact
                    )
    return list(planned.values())


def _counterpart(variant: Variant, others: Sequence[Variant]) -> FileRef | None:
    """Return the artifact that a device with this variant most likely has of another release."""
    like = [other for other in others if other.runtime is variant.runtime]
    same = [other for other in like if other.name == variant.name]
    return next((other.artifact for other in (*same, *like)), None)
