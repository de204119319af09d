"""What may be done, which role may do it, and what each endpoint demands: three tables.

An endpoint that is not in ``ENDPOINTS`` is closed to everybody, and tests/fleet_server/access
compares the table with the API's own description. Who is asking is decided in
:mod:`.authentication`; roles that an installation adds come from :mod:`.roles`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Permission(StrEnum):
    """One thing that somebody may be allowed to do."""

    READ = "read"
    AUDIT = "audit"
    PUSH = "push"
    DEVICES = "devices"
    ROLLOUT = "rollout"
    APPROVE = "approve"
    ROLLBACK = "rollback"
    STOP = "stop"
    FORCE_GATE = "force-gate"
    DISABLE_MODEL = "disable-model"
    TOKENS = "tokens"
    TRUST = "trust"


MEANING: Mapping[Permission, str] = {
    Permission.READ: "see devices, cohorts, models, releases, rollouts and their evidence",
    Permission.AUDIT: "read, verify and export the audit; make compliance reports",
    Permission.PUSH: "push a release of a model",
    Permission.DEVICES: "make enrolment tokens, label, retire and replace devices, create cohorts",
    Permission.ROLLOUT: "create, start, pause, resume and abort a rollout",
    Permission.APPROVE: "promote and archive a release; approve or reject a rollout",
    Permission.ROLLBACK: "roll a rollout back",
    Permission.STOP: "stop the fleet, and lift the stop",
    Permission.FORCE_GATE: "stage or promote against a gate's verdict",
    Permission.DISABLE_MODEL: "take a model away from devices without a successor",
    Permission.TOKENS: "make, list and revoke API tokens",
    Permission.TRUST: "see and change whose signatures the fleet believes; revoke a release",
}

ROLES: Mapping[str, frozenset[Permission]] = {
    "viewer": frozenset({Permission.READ}),
    "operator": frozenset(
        {
            Permission.READ,
            Permission.AUDIT,
            Permission.PUSH,
            Permission.DEVICES,
            Permission.ROLLOUT,
            Permission.ROLLBACK,
            Permission.STOP,
        }
    ),
    # Whoever approves does not push or start: two people, two tokens.
    "approver": frozenset(
        {
            Permission.READ,
            Permission.AUDIT,
            Permission.APPROVE,
            Permission.ROLLBACK,
            Permission.STOP,
        }
    ),
    "admin": frozenset(Permission),
}
"""The roles that are always there."""


class Door(StrEnum):
    """Who may come to an endpoint at all."""

    OPERATOR = "operator"
    """A token of the API, or one of the identity provider."""
    DEVICE = "device"
    """A device's certificate; for its renewal also one that has expired."""
    DEVICE_OR_OPERATOR = "device or operator"
    ENROLMENT = "enrolment token"
    ANYONE = "anyone"


class Reach(StrEnum):
    """What a call touches, for tokens that are limited to families of models."""

    MODEL = "model"
    """One model: the path's, the body's or the rollout's; it has to be one of the token's."""
    FLEET = "fleet"
    """All of the fleet: not for a limited token."""
    SHARED = "shared"
    """What belongs to no model, or a list that is cut down to the token's models."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What an endpoint demands; without an operator there is no permission."""

    permission: Permission | None
    reach: Reach = Reach.SHARED
    door: Door = Door.OPERATOR


_ANYONE = Rule(None, door=Door.ANYONE)
_FLEET, _MODEL = Reach.FLEET, Reach.MODEL

ENDPOINTS: Mapping[tuple[str, str], Rule] = {
    ("GET", "/health"): _ANYONE,
    ("GET", "/ready"): _ANYONE,
    ("GET", "/metrics"): _ANYONE,
    ("GET", "/v1/trust/metadata/{name}"): _ANYONE,
    ("GET", "/v1/trust/roots/{digest}"): _ANYONE,
    ("GET", "/v1/trust/targets/{name}"): _ANYONE,
    ("GET", "/v1/trust/status"): Rule(Permission.TRUST, _FLEET),
    ("GET", "/v1/trust/pending"): Rule(Permission.TRUST, _FLEET),
    ("POST", "/v1/trust/pending/signatures"): Rule(Permission.TRUST, _FLEET),
    ("POST", "/v1/trust/rotations"): Rule(Permission.TRUST, _FLEET),
    ("POST", "/v1/trust/roots"): Rule(Permission.TRUST, _FLEET),
    ("POST", "/v1/models/{model}/key"): Rule(Permission.TRUST, _MODEL),
    ("POST", "/v1/models/{model}/releases/{version}/revoke"): Rule(Permission.TRUST, _MODEL),
    ("GET", "/v1/models/{model}/pending"): Rule(Permission.PUSH, _MODEL),
    ("POST", "/v1/models/{model}/signatures"): Rule(Permission.PUSH, _MODEL),
    ("GET", "/v1/trust/authorities"): Rule(Permission.TRUST, _FLEET),
    ("POST", "/v1/trust/authorities"): Rule(Permission.TRUST, _FLEET),
    ("GET", "/v1/trust/after-restore"): Rule(Permission.TRUST, _FLEET),
    ("POST", "/v1/trust/after-restore"): Rule(Permission.TRUST, _FLEET),
    ("POST", "/v1/devices/enrol"): Rule(None, door=Door.ENROLMENT),
    ("GET", "/v1/store/deltas/{old_digest}/{new_digest}"): Rule(
        Permission.READ, door=Door.DEVICE_OR_OPERATOR
    ),
    ("GET", "/v1/store/{path}"): Rule(Permission.READ, door=Door.DEVICE_OR_OPERATOR),
    ("HEAD", "/v1/store/{path}"): Rule(Permission.READ, door=Door.DEVICE_OR_OPERATOR),
    ("POST", "/v1/devices/renew"): Rule(None, door=Door.DEVICE),
    ("POST", "/v1/bench/poll"): Rule(None, door=Door.DEVICE),
    ("GET", "/v1/bench/files/{digest}"): Rule(None, door=Door.DEVICE),
    ("POST", "/v1/bench/jobs/{number}/result"): Rule(None, door=Door.DEVICE),
    ("GET", "/v1/benches"): Rule(Permission.READ),
    ("POST", "/v1/devices/tokens"): Rule(Permission.DEVICES, _FLEET),
    ("GET", "/v1/enrolment-tokens"): Rule(Permission.DEVICES, _FLEET),
    ("DELETE", "/v1/enrolment-tokens/{token}"): Rule(Permission.DEVICES, _FLEET),
    ("POST", "/v1/devices/{name}/retire"): Rule(Permission.DEVICES, _FLEET),
    ("POST", "/v1/devices/{name}/replace"): Rule(Permission.DEVICES, _FLEET),
    ("DELETE", "/v1/devices/{name}/alarm"): Rule(Permission.DEVICES, _FLEET),
    ("GET", "/v1/devices"): Rule(Permission.READ),
    ("GET", "/v1/devices/{name}"): Rule(Permission.READ),
    ("PUT", "/v1/devices/{name}/labels"): Rule(Permission.DEVICES, _FLEET),
    ("GET", "/v1/devices/{name}/reports"): Rule(Permission.READ),
    ("POST", "/v1/cohorts"): Rule(Permission.DEVICES, _FLEET),
    ("GET", "/v1/cohorts"): Rule(Permission.READ),
    ("GET", "/v1/fleet/stop"): Rule(Permission.READ),
    ("POST", "/v1/fleet/stop"): Rule(Permission.STOP, _FLEET),
    ("GET", "/v1/models"): Rule(Permission.READ),
    ("GET", "/v1/models/{model}/releases"): Rule(Permission.READ, _MODEL),
    ("POST", "/v1/models/{model}/releases"): Rule(Permission.PUSH, _MODEL),
    ("GET", "/v1/models/{model}/releases/{version}"): Rule(Permission.READ, _MODEL),
    ("POST", "/v1/models/{model}/releases/{version}/promote"): Rule(Permission.APPROVE, _MODEL),
    ("POST", "/v1/models/{model}/releases/{version}/archive"): Rule(Permission.APPROVE, _MODEL),
    ("GET", "/v1/models/{model}/releases/{version}/card"): Rule(Permission.READ, _MODEL),
    ("GET", "/v1/models/{model}/releases/{version}/card.md"): Rule(Permission.READ, _MODEL),
    ("GET", "/v1/models/{model}/releases/{version}/card/plots/{plot}.svg"): Rule(
        Permission.READ, _MODEL
    ),
    ("GET", "/v1/models/{model}/releases/{version}/deltas"): Rule(Permission.READ, _MODEL),
    ("GET", "/v1/models/{model}/releases/{version}/provenance"): Rule(Permission.READ, _MODEL),
    ("GET", "/v1/models/{model}/releases/{version}/report"): Rule(Permission.AUDIT, _MODEL),
    ("GET", "/v1/garbage"): Rule(Permission.READ, _FLEET),
    ("POST", "/v1/garbage"): Rule(Permission.PUSH, _FLEET),
    ("POST", "/v1/uploads"): Rule(Permission.PUSH),
    ("GET", "/v1/uploads"): Rule(Permission.PUSH),
    ("HEAD", "/v1/uploads/{upload}"): Rule(Permission.PUSH),
    ("PATCH", "/v1/uploads/{upload}"): Rule(Permission.PUSH),
    ("DELETE", "/v1/uploads/{upload}"): Rule(Permission.PUSH),
    ("GET", "/v1/rollouts"): Rule(Permission.READ),
    ("POST", "/v1/rollouts"): Rule(Permission.ROLLOUT, _MODEL),
    ("POST", "/v1/rollouts/plan"): Rule(Permission.READ, _MODEL),
    ("GET", "/v1/rollouts/{rollout}"): Rule(Permission.READ, _MODEL),
    ("GET", "/v1/rollouts/{rollout}/explain"): Rule(Permission.READ, _MODEL),
    ("POST", "/v1/rollouts/{rollout}/start"): Rule(Permission.ROLLOUT, _MODEL),
    ("POST", "/v1/rollouts/{rollout}/pause"): Rule(Permission.ROLLOUT, _MODEL),
    ("POST", "/v1/rollouts/{rollout}/resume"): Rule(Permission.ROLLOUT, _MODEL),
    ("POST", "/v1/rollouts/{rollout}/abort"): Rule(Permission.ROLLOUT, _MODEL),
    ("POST", "/v1/rollouts/{rollout}/rollback"): Rule(Permission.ROLLBACK, _MODEL),
    # Inputs are found by their digest alone, which only the rollout tells.
    ("GET", "/v1/evidence/{digest}"): Rule(Permission.READ),
    ("GET", "/v1/cohort-releases"): Rule(Permission.READ),
    ("GET", "/v1/audit"): Rule(Permission.AUDIT, _FLEET),
    ("GET", "/v1/audit/verification"): Rule(Permission.AUDIT, _FLEET),
    ("GET", "/v1/audit/export"): Rule(Permission.AUDIT, _FLEET),
    ("GET", "/v1/audit/checkpoints"): Rule(Permission.AUDIT, _FLEET),
    ("POST", "/v1/audit/checkpoints"): Rule(Permission.AUDIT, _FLEET),
    ("GET", "/v1/tokens"): Rule(Permission.TOKENS, _FLEET),
    ("POST", "/v1/tokens"): Rule(Permission.TOKENS, _FLEET),
    ("DELETE", "/v1/tokens/{token}"): Rule(Permission.TOKENS, _FLEET),
}
"""(method, path as the API describes it) → what it demands."""
