"""What a change of metadata means, in words, from the very bytes that are to be signed.

Pure: whoever signs runs this where the key is, so that a server cannot describe one change and have
another signed. What was there before comes from the server's committed metadata.
"""

import json
from typing import Any

MOST_LINES = 40
"""Files named one by one; of more, the number is told."""

Json = dict[str, Any]


def describe(role: str, before: Json | None, after: Json) -> list[str]:
    """Return the differences of two versions of a role's signed part, one to a line.

    Args:
        role: its name.
        before: the committed one, None if there is none.
        after: the one to be signed.
    """
    old = before or {}
    lines = [f"{role} version {old.get('version', 'none')} → {after['version']}"]
    lines.append(f"valid until {after['expires'][:10]}")
    if after["_type"] == "root":
        lines += _root(old, after)
    else:
        lines += _delegations(old, after) + _targets(old.get("targets", {}), after["targets"])
    return lines


def describe_keyset(before: bytes | None, after: bytes) -> list[str]:
    """Return the differences of two keysets."""
    old, new = json.loads(before or b"{}"), json.loads(after)
    lines = []
    for name, what in (("generation", "generation"), ("epoch_floor", "epoch floor")):
        if old.get(name) != new[name]:
            lines.append(f"{what} {old.get(name, 'none')} → {new[name]}")
    held = [item["keyid"] for item in old.get("directors", [])]
    coming = [item["keyid"] for item in new["directors"]]
    if held != coming:
        lines.append(f"directors {_names(held)} → {_names(coming)}")
    floors = old.get("release_floors", {})
    for model, floor in new.get("release_floors", {}).items():
        if floors.get(model, 0) != floor:
            lines.append(f"releases of {model} with a counter below {floor} are revoked")
    return lines


def _root(old: Json, new: Json) -> list[str]:
    lines = []
    for name, role in sorted(new["roles"].items()):
        was = old.get("roles", {}).get(name, {"keyids": [], "threshold": 0})
        removed = [key for key in was["keyids"] if key not in role["keyids"]]
        added = [key for key in role["keyids"] if key not in was["keyids"]]
        if removed:
            lines.append(f"{name}: key {_names(removed)} is no longer believed")
        if added:
            lines.append(f"{name}: key {_names(added)} is believed from now on")
        if was["threshold"] != role["threshold"]:
            count = len(role["keyids"])
            lines.append(f"{name}: {role['threshold']} of {count} keys have to sign")
    if not new.get("consistent_snapshot"):
        lines.append("consistent snapshots are OFF: do not sign this")
    return lines


def _delegations(old: Json, new: Json) -> list[str]:
    was, now = _roles(old), _roles(new)
    lines = [f"{name} is no longer delegated" for name in sorted(was.keys() - now.keys())]
    for name, (keys, threshold) in sorted(now.items()):
        if was.get(name) != (keys, threshold):
            verb = "is delegated" if name not in was else "changes its keys, and is delegated"
            lines.append(f"{name} {verb} to {threshold} of {_names(keys)}")
    return lines


def _roles(signed: Json) -> dict[str, tuple[list[str], int]]:
    delegations = signed.get("delegations") or {}
    roles = {item["name"]: item for item in delegations.get("roles", [])}
    succinct = delegations.get("succinct_roles")
    if succinct is not None:
        roles[f"{succinct['name_prefix']}-*"] = succinct
    return {name: (sorted(item["keyids"]), item["threshold"]) for name, item in roles.items()}


def _targets(old: Json, new: Json) -> list[str]:
    lines = [f"vouches no longer for {path}" for path in sorted(old.keys() - new.keys())]
    for path in sorted(new):
        if old.get(path) != new[path]:
            digest = new[path]["hashes"].get("sha256", "")
            lines.append(f"vouches for {path} ({new[path]['length']} bytes, {digest[:12]})")
    more = len(lines) - MOST_LINES
    return lines if more <= 0 else [*lines[:MOST_LINES], f"and {more} more"]


def _names(keyids: list[str]) -> str:
    return ", ".join(key[:12] for key in keyids) or "nobody"
