"""Other keys for roles: each rotation is one change of the repository, signed by whom it needs.

Decides what has to be signed anew with which key. Who may ask for it, and what follows for the
director, is decided elsewhere.
"""

from collections.abc import Iterable, Sequence

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from fleet_contract import limits
from fleet_contract.trust.keyset import KEYSET_PATH
from fleet_server.errors import Conflict, Invalid
from fleet_server.trust.catalogue.changing import Change, Changes
from fleet_server.trust.catalogue.committed import to_bytes
from fleet_server.trust.catalogue.proposals import Proposal
from fleet_server.trust.catalogue.repository import (
    Catalogue,
    bin_of,
    delegate_family,
    family_role,
    keyset_target,
)
from fleet_server.trust.catalogue.signers import HeldKey

ONLINE = ("snapshot", "timestamp")
MOST_KEYS = 16
"""Keys of one role: each is fetched by every device, and each signature costs a check."""


def rotate_online(catalogue: Catalogue, role: str) -> bool:
    """Give snapshot or timestamp a new key, made here; the next root says so.

    Returns:
        Whether it is committed; False means that it waits for signatures.
    """
    with catalogue.changes.lock:
        key = catalogue.changes.signers.make_key(role)
        root = catalogue.changes.root()
        _set_keys(root, role, [key], 1)
        change = Change(f"a new key for {role}", {"root": root}, signers={role: [key]})
        done = catalogue.changes.change(change)
    return _tell(catalogue, done)


def rotate_top(catalogue: Catalogue, role: str, keys: Sequence[HeldKey], threshold: int) -> bool:
    """Give root or targets other keys and another threshold; without keys, one is made here.

    Returns:
        Whether it is committed; False means that it waits for signatures.

    Raises:
        Invalid: if the threshold cannot be met by these keys.
    """
    with catalogue.changes.lock:
        keys = list(keys) or [catalogue.changes.signers.make_key(role)]
        check_threshold(keys, threshold)
        root = catalogue.changes.root()
        _set_keys(root, role, keys, threshold)
        files: dict[str, Root | Targets] = {"root": root}
        if role == "targets":
            files["targets"] = catalogue.changes.role("targets")
        why = f"{threshold} of {len(keys)} new keys for {role}"
        done = catalogue.changes.change(Change(why, files, signers={role: list(keys)}))
    return _tell(catalogue, done)


def rotate_family(
    catalogue: Catalogue,
    model: str,
    keys: Sequence[HeldKey],
    threshold: int,
    known: Iterable[TargetFile],
) -> bool:
    """Delegate a model to other keys; its bins then hold what is ``known``, and nothing else.

    A family that does not exist yet gets its keys so, before its first release.

    Returns:
        Whether it is committed; False means that it waits for signatures.
    """
    with catalogue.changes.lock:
        family = f"model.{model}"
        keys = list(keys) or [catalogue.changes.signers.make_key(family)]
        check_threshold(keys, threshold)
        top = catalogue.changes.role("targets")
        delegate_family(top, model, keys, threshold)
        files: dict[str, Root | Targets] = {
            "targets": top,
            family: family_role(model, keys, threshold),
            **_bins(catalogue, model, known),
        }
        why = f"{threshold} of {len(keys)} new keys for the family {model}"
        done = catalogue.changes.change(Change(why, files, signers={family: list(keys)}))
    return _tell(catalogue, done)


def withdraw(
    catalogue: Catalogue, model: str, known: Iterable[TargetFile], keyset: bytes, why: str
) -> bool:
    """Vouch for nothing of a model but what is ``known``, and for a keyset that says so.

    Returns:
        Whether all of it is committed; False means that some waits for signatures.
    """
    with catalogue.changes.lock:
        top = catalogue.changes.role("targets")
        top.targets[KEYSET_PATH] = keyset_target(keyset)
        # The keyset first and alone: devices must not wait for the family's key.
        change = Change(why, {"targets": top}, documents={KEYSET_PATH: keyset})
        done = catalogue.changes.change(change)
        bins = {
            name: role
            for name, role in _bins(catalogue, model, known).items()
            if role.targets != catalogue.changes.role(name).targets
        }
        if bins:
            done = catalogue.changes.change(Change(why, bins)) and done
    catalogue.follow()
    return done


def take_root(catalogue: Catalogue, data: bytes) -> bool:
    """Take a root N+1 that was made and signed elsewhere; what it lacks is waited for.

    If this server does not have the keys that it gives to snapshot or timestamp (the server that
    had them is lost), another root follows it at once that gives these roles keys made here. That
    one has to be signed; until then both wait, and roots that come after N+1 may be brought, too.

    Returns:
        Whether it is committed; False means that it waits for signatures.

    Raises:
        Invalid: if it is no root. Conflict: if it cannot follow the one before.
    """
    metadata = _read_root(data)
    root = metadata.signed
    with catalogue.changes.lock:
        changes = catalogue.changes
        before = changes.followed_root()
        waits = [item for item in changes.pending.values() if "root" in item.files]
        if any(not item.earlier for item in waits):
            raise _not_next("another one waits for signatures")
        if root.version != before.version + 1:
            raise _not_next(f"it is version {root.version}, the one before is {before.version}")
        if not root.consistent_snapshot:
            raise _not_next("consistent snapshots are off in it")
        keys = {
            role: _known(changes.signers.held(role), root, role) for role in ("root", "targets")
        }
        is_ours = all(
            set(root.roles[role].keyids) == set(before.roles[role].keyids)
            for role in (*ONLINE, "targets")
        )
        if is_ours and not waits:
            why = "a root that was made elsewhere"
            done = changes.take(metadata, why, {"root": keys["root"]})
        else:
            done = _follow(changes, before, metadata, waits, keys)
    return _tell(catalogue, done)


def _follow(
    changes: Changes,
    before: Root,
    metadata: Metadata[Root],
    waits: Sequence[Proposal],
    keys: dict[str, list[HeldKey]],
) -> bool:
    """Let a root of a lost server be followed by one that gives the online roles keys made here."""
    try:
        for delegator in (before, metadata.signed):
            delegator.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    except RepositoryError as error:
        raise _not_next("not as many have signed it as must") from error
    next_root = Metadata[Root].from_bytes(to_bytes(metadata)).signed
    signers = dict(keys)
    for role in ONLINE:
        signers[role] = [changes.signers.make_key(role)]
        _set_keys(next_root, role, signers[role], 1)
    files: dict[str, Root | Targets] = {"root": next_root}
    present = changes.shown.root.signed
    if set(next_root.roles["targets"].keyids) != set(present.roles["targets"].keyids):
        files["targets"] = changes.role("targets")
    earlier = [*(root for item in waits for root in item.earlier_roots()), metadata]
    why = f"root {metadata.signed.version}, and new keys for {' and '.join(ONLINE)} after it"
    return changes.change(Change(why, files, signers=signers, earlier=earlier))


def _known(held: Sequence[HeldKey], root: Root, role: str) -> list[HeldKey]:
    known = {key.keyid: key for key in held}
    return [
        known.get(keyid) or HeldKey(keyid, root.keys[keyid].to_dict(), "")
        for keyid in root.roles[role].keyids
    ]


def _read_root(data: bytes) -> Metadata[Root]:
    if len(data) > limits.ROOT_BYTES:
        raise Invalid("root_too_large", f"A root has at most {limits.ROOT_BYTES} bytes.")
    try:
        metadata = Metadata[Root].from_bytes(data)
        if not isinstance(metadata.signed, Root):
            raise Invalid("not_a_root", "This is TUF metadata, but of another role than root.")
    except (RepositoryError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Invalid("not_a_root", f"This is no root: {type(error).__name__}.") from error
    return metadata


def check_threshold(keys: Sequence[HeldKey], threshold: int) -> None:
    """Check that so many of these keys can sign.

    Raises:
        Invalid: if they cannot.
    """
    # One key under two names would sign for two people.
    different = {str(key.public.get("keyval")) for key in keys}
    if not 1 <= threshold <= len(different) == len(keys) <= MOST_KEYS:
        raise Invalid(
            "no_such_threshold",
            f"{threshold} of {len(keys)} keys cannot be: at least 1, at most all, all different, "
            f"and no more than {MOST_KEYS} keys.",
        )


def _set_keys(root: Root, role: str, keys: Sequence[HeldKey], threshold: int) -> None:
    for keyid in list(root.roles[role].keyids):
        root.revoke_key(keyid, role)
    for key in keys:
        root.add_key(key.key(), role)
    root.roles[role].threshold = threshold


def _bins(catalogue: Catalogue, model: str, known: Iterable[TargetFile]) -> dict[str, Targets]:
    """Return every bin that there is or has to be, with the known targets in it."""
    changes = catalogue.changes
    there = {name.removesuffix(".json") for name in changes.shown.snapshot.signed.meta}
    there |= {role for item in changes.pending.values() for role in item.files}
    prefix = f"bin.{model}-"
    bins = {
        name: Targets()
        for name in there
        if name.startswith(prefix) and "-" not in name.removeprefix(prefix)
    }
    for target in known:
        bins.setdefault(bin_of(model, target.path), Targets()).targets[target.path] = target
    return bins


def _tell(catalogue: Catalogue, done: bool) -> bool:
    if done:
        catalogue.follow()
    return done


def _not_next(detail: str) -> Conflict:
    return Conflict(
        "not_the_next_root",
        f"This cannot be the fleet's next root: {detail}.",
        "Make it from the present one: edgefleet trust status shows it.",
    )
