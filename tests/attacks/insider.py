"""An attacker inside the fleet, for whom the director really signs whatever he asks for.

What the table of tests/attacks/documents.py needs from the battlefield.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from fleet_contract import codec
from fleet_contract.trust.directive import ASSIGNMENT_TYPE, DIRECTIVE_TYPE, STOP_TYPE

if TYPE_CHECKING:
    from tests.attacks.battlefield import Battlefield

FLEET, COHORT, DEVICE, MODEL = "home", "default", "victim", "digits"

Json = dict[str, Any]


@dataclass(frozen=True)
class Insider:
    """Gets documents really signed by the director (tests/attacks/documents.Scene)."""

    field: Battlefield
    older: bytes

    @property
    def newest(self) -> bytes:
        return self.field.newest

    @property
    def newest_epoch(self) -> int:
        return self.field.newest_epoch

    @property
    def generation(self) -> int:
        return self.field.keyring.generation

    def directive(self, *, also: Json | None = None, **changes: Any) -> bytes:
        document = msgspec.to_builtins(self.field.directive(**changes))
        return self._sign(DIRECTIVE_TYPE, {**document, **(also or {})})

    def assignment(self, **changes: Any) -> bytes:
        blocked = {MODEL: [self.field.stable.digest]}
        fields = {"cohort": COHORT, "labels": {}, "pins": {}, "blocks": blocked}
        fields |= {"device": DEVICE, "minimum_epochs": {}}
        return self._sign(ASSIGNMENT_TYPE, {**self._said(), **fields, **changes})

    def stop(self, **changes: Any) -> bytes:
        fields = {"stopped": True, "reason": ""}
        return self._sign(STOP_TYPE, {**self._said(), **fields, **changes})

    def _said(self) -> Json:
        now = self.field.directive()
        return {
            "fleet": FLEET,
            "generation": now.generation,
            "epoch": now.epoch,
            "issued_ms": now.issued_ms,
        }

    def _sign(self, kind: str, document: Json) -> bytes:
        return self.field.keyring.sign_checkpoint(kind, codec.encode_json(document))
