"""The keyset: which online keys a fleet believes, of which generation, signed by its root key.

Devices pin the root key at enrolment. Raising the generation makes everything that older director
keys signed worthless; the epoch floor does the same for what they signed up to a point in time.
"""

import msgspec

from fleet_contract import codec, limits
from fleet_contract.errors import Reason, Refused
from fleet_contract.names import Digest, Identity
from fleet_contract.trust import envelope

PAYLOAD_TYPE = "application/vnd.edgefleet.keyset.v1+json"


class PublicKey(msgspec.Struct, frozen=True):
    """A raw Ed25519 public key in hexadecimal and its key id."""

    keyid: Digest
    public: Digest


class Keyset(msgspec.Struct, frozen=True):
    """What the root key vouches for.

    ``directors`` sign directives, assignments and the stop: the current key and the next one.
    ``releases`` sign manifests.
    """

    fleet: Identity
    generation: int
    epoch_floor: int
    directors: list[PublicKey]
    releases: list[PublicKey]

    def director_keys(self) -> dict[str, bytes]:
        """Return key id → raw public key of the directors."""
        return {key.keyid: bytes.fromhex(key.public) for key in self.directors}

    def release_keys(self) -> dict[str, bytes]:
        """Return key id → raw public key of the signers of releases."""
        return {key.keyid: bytes.fromhex(key.public) for key in self.releases}


def read_keyset(data: bytes, *, fleet: str, root_public: bytes, held: Keyset | None) -> Keyset:
    """Return the keyset in an envelope signed by the pinned root key.

    Args:
        data: the envelope as received.
        fleet: the fleet it must be for.
        root_public: the raw public key pinned at enrolment.
        held: the keyset already believed, which a new one may not fall behind.

    Raises:
        Refused: with the reason of the first check that failed.
    """
    payload = envelope.unseal(
        data,
        PAYLOAD_TYPE,
        {envelope.key_id(root_public): root_public},
        limit_bytes=limits.ENVELOPE_BYTES,
    )
    keyset = codec.decode_json(payload, Keyset, limit_bytes=limits.ENVELOPE_BYTES)
    if keyset.fleet != fleet:
        raise Refused(Reason.WRONG_AUDIENCE, f"this keyset is for fleet {keyset.fleet}")
    for key in [*keyset.directors, *keyset.releases]:
        if envelope.key_id(bytes.fromhex(key.public)) != key.keyid:
            raise Refused(Reason.MALFORMED, f"key id {key.keyid[:12]} is not that of its key")
    if held is not None and keyset.generation < held.generation:
        raise Refused(
            Reason.OLD_GENERATION, f"generation {keyset.generation} < {held.generation} held"
        )
    if held is not None and keyset.epoch_floor < held.epoch_floor:
        raise Refused(Reason.OLD_EPOCH, f"floor {keyset.epoch_floor} < {held.epoch_floor} held")
    return keyset
