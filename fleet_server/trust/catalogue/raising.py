"""Goes on above what devices hold of a repository that knew more than this one: after a restore.

Every role is signed anew, above everything that was seen, and every family that was seen is there
again, if need be without a release: a device refuses a snapshot that misses a role, or names an
older version of one. Root is not raised: it only follows from the one before.
"""

from collections.abc import Iterable, Mapping

from tuf.api.metadata import Root, SuccinctRoles, Targets

from fleet_server.trust.catalogue.changing import Change
from fleet_server.trust.catalogue.proposals import signing_role
from fleet_server.trust.catalogue.repository import (
    BIN_BITS,
    Catalogue,
    delegate_family,
    family_role,
)
from fleet_server.trust.catalogue.signers import HeldKey

LEAP = 1_000
"""How far versions are raised above those that are known: the silent may have seen more."""
_WHY = "above what devices have seen, after a restore"


def raise_above(
    catalogue: Catalogue, seen: Mapping[str, int], families: Iterable[str]
) -> list[str]:
    """Sign everything anew, above what devices have seen.

    Args:
        catalogue: the repository that was restored.
        seen: highest versions of ``timestamp``, ``snapshot`` and ``targets`` (of any role).
        families: models whose roles devices have seen.

    Returns:
        The roles that wait for a key that is elsewhere.

    Raises:
        OSError: if it cannot be written.
    """
    changes = catalogue.changes
    with changes.lock:
        changes.jump({role: version + LEAP for role, version in seen.items()})
        files: dict[str, Root | Targets] = {"targets": changes.role("targets")}
        signers: dict[str, list[HeldKey]] = {}
        known = {
            name.removesuffix(".json").removeprefix("model.")
            for name in changes.shown.snapshot.signed.meta
            if name.startswith("model.")
        }
        for model in sorted(set(families) - known):
            top, family = files["targets"], f"model.{model}"
            assert isinstance(top, Targets)
            keys = changes.keys(family) or [changes.signers.make_key(family)]
            delegate_family(top, model, keys, 1)
            files[family] = family_role(model, keys, 1)
            signers[family] = keys
            known.add(model)
        for model in sorted(known):
            for name in (f"model.{model}", *_bins(model)):
                if name not in files:
                    files[name] = changes.role(name) if changes.exists(name) else Targets()
        # New families come with the targets that delegate to them, and wait with them.
        top_files = {
            name: role
            for name, role in files.items()
            if name == "targets" or signing_role(name) in signers
        }
        here = {
            name: role
            for name, role in files.items()
            if name not in top_files and catalogue.signs_alone(name)
        }
        if here:
            changes.change(Change(_WHY, here))
        else:
            changes.show_again()
        waiting = [name for name in files if name not in here and name not in top_files]
        for name in waiting:
            changes.change(Change(_WHY, {name: files[name]}))
        if not changes.change(Change(_WHY, top_files, signers=signers)):
            waiting.append("targets")
        return waiting


def _bins(model: str) -> Iterable[str]:
    return SuccinctRoles([], 1, BIN_BITS, f"bin.{model}").get_roles()
