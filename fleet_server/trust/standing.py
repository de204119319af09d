"""How trust stands: roles, keys and where they are, what waits, what a person should do next."""

from tuf.api.metadata import Role, Targets

from fleet_server.trust.catalogue.repository import Catalogue
from fleet_server.trust.keyring import Keyring
from fleet_server.trust.schemas import RoleKey, RoleStatus, TrustStatus

SOON_MS = 30 * 86_400_000
"""Root and targets are signed by people: they want to know a month before."""


def status(catalogue: Catalogue, keyring: Keyring, *, now_ms: int) -> TrustStatus:
    """Return how trust stands at ``now_ms``."""
    changes = catalogue.changes
    with changes.lock:
        root = changes.shown.root.signed
        targets = changes.committed("targets")
        found = [_role(catalogue, name, root.roles[name]) for name in root.roles]
        found += _families(catalogue, targets)
        pending = [f"{item.id}: {'; '.join(item.why)}" for item in changes.pending.values()]
        coming = any("keyset.json" in item.documents for item in changes.pending.values())
    warnings = _warnings(catalogue, found, now_ms)
    if pending:
        warnings.append(f"{len(pending)} change(s) wait for signatures")
    if coming:
        warnings.append("the next keyset waits for a signature: devices do not know it")
    keyset = keyring.keyset
    return TrustStatus(
        fleet=keyring.fleet,
        roles=sorted(found, key=lambda item: (item.role.startswith("model."), item.role)),
        generation=keyset.generation,
        epoch_floor=keyset.epoch_floor,
        directors=[key.keyid for key in keyset.directors],
        release_floors=keyset.release_floors,
        pending=pending,
        warnings=warnings,
        next_step=_next_step(catalogue, pending, warnings),
    )


def _role(catalogue: Catalogue, name: str, role: Role) -> RoleStatus:
    changes = catalogue.changes
    shown = changes.shown
    signed = {
        "root": shown.root.signed,
        "snapshot": shown.snapshot.signed,
        "timestamp": shown.timestamp.signed,
    }.get(name) or changes.committed(name)
    here = {key.keyid for key in changes.signers.held(name) if key.uri}
    return RoleStatus(
        role=name,
        version=signed.version,
        expires_ms=int(signed.expires.timestamp() * 1000),
        threshold=role.threshold,
        keys=[RoleKey(keyid=keyid, here=keyid in here) for keyid in role.keyids],
    )


def _families(catalogue: Catalogue, targets: Targets) -> list[RoleStatus]:
    delegations = targets.delegations
    if delegations is None or delegations.roles is None:
        return []
    return [_role(catalogue, name, role) for name, role in delegations.roles.items()]


def _warnings(catalogue: Catalogue, roles: list[RoleStatus], now_ms: int) -> list[str]:
    warnings = []
    if catalogue.holds_root_key:
        warnings.append("the root's keys lie on this server's disk: for trying out only")
    for item in roles:
        left_ms = item.expires_ms - now_ms
        alone = sum(key.here for key in item.keys) >= item.threshold
        if left_ms <= 0:
            warnings.append(f"{item.role} has expired: devices take nothing new")
        elif left_ms < SOON_MS and not alone:
            warnings.append(f"{item.role} expires in {left_ms // 86_400_000} days")
    return warnings


def _next_step(catalogue: Catalogue, pending: list[str], warnings: list[str]) -> str:
    if pending:
        return "Sign what waits: edgefleet trust sign --keys DIR"
    if catalogue.holds_root_key:
        return "Move root and targets off this disk: edgefleet trust rotate root --offline DIR"
    return "Nothing to do." if not warnings else "See docs/operating/trust.md."
