"""The keyset: which online keys a fleet believes, and of which generation.

It is a target of the fleet's TUF repository: that it is the fleet's, and the newest, is proved by
the metadata before anybody reads it here. Raising the generation makes everything that older
director keys signed worthless; the epoch floor does the same for what they signed up to a point in
time, and a release floor for releases that were revoked. None of the three ever falls.
"""

from typing import Annotated

import msgspec

from fleet_contract import codec, limits
from fleet_contract.counts import Count
from fleet_contract.errors import Reason, Refused
from fleet_contract.names import Digest, Identity, ModelName
from fleet_contract.trust import envelope

KEYSET_PATH = "keyset.json"
"""Its path among the targets of the top-level role."""

Floor = Annotated[int, msgspec.Meta(ge=0, le=limits.LARGEST_INTEGER)]


class PublicKey(msgspec.Struct, frozen=True):
    """A raw Ed25519 public key in hexadecimal and its key id."""

    keyid: Digest
    public: Digest


class Keyset(msgspec.Struct, frozen=True):
    """Who may say what to run.

    ``directors`` sign directives, assignments and the stop: the current key and the next one.
    ``release_floors`` maps a model to the least release counter that a device may still go to.
    """

    fleet: Identity
    generation: Count
    epoch_floor: Count
    directors: list[PublicKey]
    release_floors: dict[ModelName, Floor] = {}

    def director_keys(self) -> dict[str, bytes]:
        """Return key id → raw public key of the directors."""
        return {key.keyid: bytes.fromhex(key.public) for key in self.directors}


def read_keyset(data: bytes, *, fleet: str, held: Keyset | None) -> Keyset:
    """Return the keyset in bytes that the metadata vouches for.

    Args:
        data: the target as fetched, its length and hash checked.
        fleet: the fleet it must be for.
        held: the keyset already believed, which a new one may not fall behind.

    Raises:
        Refused: with the reason of the first check that failed.
    """
    keyset = codec.decode_json(data, Keyset, limit_bytes=limits.ENVELOPE_BYTES)
    if keyset.fleet != fleet:
        raise Refused(Reason.WRONG_AUDIENCE, f"this keyset is for fleet {keyset.fleet}")
    for key in keyset.directors:
        if envelope.key_id(bytes.fromhex(key.public)) != key.keyid:
            raise Refused(Reason.MALFORMED, f"key id {key.keyid[:12]} is not that of its key")
    if held is not None and keyset.generation < held.generation:
        raise Refused(
            Reason.OLD_GENERATION, f"generation {keyset.generation} < {held.generation} held"
        )
    if held is not None and keyset.epoch_floor < held.epoch_floor:
        raise Refused(Reason.OLD_EPOCH, f"floor {keyset.epoch_floor} < {held.epoch_floor} held")
    if held is not None:
        for model, floor in held.release_floors.items():
            if keyset.release_floors.get(model, 0) < floor:
                raise Refused(
                    Reason.OLD_GENERATION, f"the release floor of {model} is below {floor} held"
                )
    return keyset
