"""The director's private keys: made at first start, read afterwards, never half.

They sign what devices should do. That devices believe them is said by the keyset, for which the
repository of what exists vouches (:mod:`fleet_server.trust.catalogue`). Which form the documents
have is the contract's matter.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet_contract import codec
from fleet_contract.errors import Reason, Refused
from fleet_contract.trust import envelope
from fleet_contract.trust.directive import (
    ASSIGNMENT_TYPE,
    DIRECTIVE_TYPE,
    STOP_TYPE,
    Assignment,
    Directive,
    Stop,
)
from fleet_contract.trust.keyset import Keyset, PublicKey, read_keyset
from fleet_server.errors import StartError
from fleet_server.trust import durable

KEYS = ("director", "director-next")
KEYSET_FILE = "keyset.json"


class Keyring:
    """The keys of one fleet.

    Attributes:
        fleet: whose keys they are.
        keyset_bytes: the keyset as devices fetch it.
        generation: what every signed document has to carry.
        made_now: whether this start created the keys.
    """

    def __init__(
        self,
        fleet: str,
        keys: Mapping[str, Ed25519PrivateKey],
        keyset_bytes: bytes,
        *,
        made_now: bool,
    ) -> None:
        self.fleet = fleet
        self.made_now = made_now
        self.keyset_bytes = keyset_bytes
        self.keyset = read_keyset(keyset_bytes, fleet=fleet, held=None)
        self._keys = keys
        known = self.keyset.director_keys()
        if envelope.key_id(_public(keys["director"])) not in known:
            raise Refused(Reason.UNKNOWN_KEY, "the keyset does not name the director's key")
        self.generation = self.keyset.generation

    def sign_directive(self, directive: Directive) -> bytes:
        """The directive in an envelope signed by the director key."""
        return self._seal("director", DIRECTIVE_TYPE, codec.encode_json(directive))

    def sign_assignment(self, assignment: Assignment) -> bytes:
        """The assignment in an envelope signed by the director key."""
        return self._seal("director", ASSIGNMENT_TYPE, codec.encode_json(assignment))

    def sign_stop(self, stop: Stop) -> bytes:
        """The stop in an envelope signed by the director key."""
        return self._seal("director", STOP_TYPE, codec.encode_json(stop))

    def sign_checkpoint(self, payload_type: str, payload: bytes) -> bytes:
        """A statement about the server's own records in an envelope signed by the director key."""
        return self._seal("director", payload_type, payload)

    def checkpoint_keys(self) -> dict[str, bytes]:
        """The keys whose checkpoints are believed: key id → raw public key."""
        return {key.keyid: bytes.fromhex(key.public) for key in self.keyset.directors}

    def _seal(self, name: str, payload_type: str, payload: bytes) -> bytes:
        return envelope.seal(payload_type, payload, _signer(self._keys[name]))


def open_keyring(folder: Path, *, fleet: str, random_bytes: Callable[[int], bytes]) -> Keyring:
    """Return the keyring in ``folder``, made there if the folder does not exist.

    Raises:
        StartError: if the folder is there and any key in it is missing, unreadable or another
            fleet's. New keys are never made beside old ones: devices would believe neither.
    """
    if folder.exists():
        return _read(folder, fleet)
    keys = {name: Ed25519PrivateKey.from_private_bytes(random_bytes(32)) for name in KEYS}
    # The next key is known before it is needed, so that a change needs no new trust.
    listed = [_listed(keys["director"]), _listed(keys["director-next"])]
    keyset_bytes = codec.encode_json(Keyset(fleet, generation=1, epoch_floor=0, directors=listed))
    try:
        _write(folder, keys, keyset_bytes)
    except OSError as error:
        raise StartError(
            "keys_unwritable",
            f"The keys cannot be written: {error.strerror}.",
            "Give the server a data folder that it may write.",
        ) from error
    return Keyring(fleet, keys, keyset_bytes, made_now=True)


def _read(folder: Path, fleet: str) -> Keyring:
    try:
        keys = {
            name: Ed25519PrivateKey.from_private_bytes(
                bytes.fromhex((folder / f"{name}.key").read_text(encoding="ascii").strip())
            )
            for name in KEYS
        }
        keyset_bytes = (folder / KEYSET_FILE).read_bytes()
        return Keyring(fleet, keys, keyset_bytes, made_now=False)
    except Refused as error:
        if error.reason is Reason.WRONG_AUDIENCE:
            raise StartError(
                "other_fleet",
                f"The data folder belongs to another fleet: {error.detail}.",
                "Start with that fleet's name (--fleet), or name another folder (--data-dir).",
            ) from error
        raise _unreadable(error.detail) from error
    except (OSError, ValueError) as error:
        where = Path(error.filename).name if isinstance(error, OSError) and error.filename else ""
        raise _unreadable(f"{type(error).__name__} {where}".strip()) from error


def _unreadable(why: str) -> StartError:
    # Fail closed, and say which file without saying what is in it.
    return StartError(
        "keys_unreadable",
        f"The fleet's keys cannot be used: {why}.",
        "Restore the keys folder of the data folder from its backup. Do not delete it: "
        "devices believe the directors in it and no other.",
    )


def _write(folder: Path, keys: Mapping[str, Ed25519PrivateKey], keyset_bytes: bytes) -> None:
    # All keys appear at once: a crash in between leaves a folder that nobody reads.
    fresh = folder.with_name(folder.name + ".new")
    fresh.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, key in keys.items():
        path = fresh / f"{name}.key"
        durable.write_file(path, key.private_bytes_raw().hex().encode() + b"\n")
    durable.write_file(fresh / KEYSET_FILE, keyset_bytes)
    fresh.rename(folder)
    durable.sync_folder(folder.parent)


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _listed(key: Ed25519PrivateKey) -> PublicKey:
    public = _public(key)
    return PublicKey(keyid=envelope.key_id(public), public=public.hex())


def _signer(key: Ed25519PrivateKey) -> dict[str, Callable[[bytes], bytes]]:
    return {envelope.key_id(_public(key)): key.sign}
