"""The director's private keys: made at first start, read afterwards, never half.

They sign what devices should do. That devices believe them is said by the keyset, for which the
repository of what exists vouches (:mod:`fleet_server.trust.catalogue`). Which form the documents
have is the contract's matter.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet_contract import codec
from fleet_contract.errors import Reason, Refused
from fleet_contract.trust import envelope
from fleet_contract.trust.bench import BENCH_JOB_TYPE, BenchJob
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
    """The keys of one fleet. The first director of the keyset signs.

    Attributes:
        fleet: whose keys they are.
        keyset_bytes: the keyset as devices fetch it.
        keyset: what it says.
        generation: what every signed document has to carry.
        made_now: whether this start created the keys.
    """

    def __init__(
        self,
        folder: Path,
        fleet: str,
        keys: Mapping[str, Ed25519PrivateKey],
        keyset_bytes: bytes,
        *,
        made_now: bool,
    ) -> None:
        self.fleet = fleet
        self.made_now = made_now
        self._folder = folder
        self._keys = dict(keys)
        self._take(keyset_bytes)

    def propose_directors(
        self, base: bytes, *, lost: bool, now_ms: int, random_bytes: Callable[[int], bytes]
    ) -> bytes:
        """Return the keyset ``base`` with its next director as the current one, and a new next one.

        With a ``lost`` director both are new, since both lay on the same disk; the generation is
        raised and so is the epoch floor, up to ``now_ms``: nothing that the old ones signed is
        worth anything any more. The new keys are stored; they sign after :meth:`adopt` only.

        Raises:
            OSError: if they cannot be.
        """
        keyset = read_keyset(base, fleet=self.fleet, held=None)
        fresh = [self._make(random_bytes) for _ in range(2 if lost else 1)]
        return codec.encode_json(
            msgspec.structs.replace(
                keyset,
                generation=max(keyset.generation, self.generation + lost),
                epoch_floor=max(keyset.epoch_floor, now_ms if lost else 0),
                directors=fresh if lost else [keyset.directors[1], *fresh],
            )
        )

    def propose_floor(self, base: bytes, model: str, floor: int) -> bytes:
        """Return the keyset ``base`` with a release floor of a model and the next generation: a
        generation that devices do not know makes them ask for the keyset at once.
        """
        keyset = read_keyset(base, fleet=self.fleet, held=None)
        floors = {**keyset.release_floors, model: max(floor, keyset.release_floors.get(model, 0))}
        return codec.encode_json(
            msgspec.structs.replace(
                keyset,
                generation=max(keyset.generation, self.generation + 1),
                release_floors=floors,
            )
        )

    def propose_raised(
        self, base: bytes, *, least: int, epoch_floor: int, release_floors: Mapping[str, int]
    ) -> bytes:
        """Return the keyset ``base`` with a generation above the present one and of at least
        ``least``, and with floors of at least these: all that was signed before is then void.
        """
        keyset = read_keyset(base, fleet=self.fleet, held=None)
        floors = {
            model: max(keyset.release_floors.get(model, 0), release_floors.get(model, 0))
            for model in sorted(keyset.release_floors.keys() | release_floors.keys())
        }
        return codec.encode_json(
            msgspec.structs.replace(
                keyset,
                generation=max(least, keyset.generation, self.generation + 1),
                epoch_floor=max(keyset.epoch_floor, epoch_floor),
                release_floors=floors,
            )
        )

    def adopt(self, keyset_bytes: bytes) -> None:
        """Sign by this keyset from now on, and forget the keys that it does not name.

        Raises:
            StartError: if its keys are not here.
            OSError: if it cannot be stored; then nothing changed.
        """
        keyset = read_keyset(keyset_bytes, fleet=self.fleet, held=None)
        if any(key.keyid not in self._keys for key in keyset.directors):
            raise _unreadable("the keyset that devices believe names a key that is not here")
        durable.write_file(self._folder / KEYSET_FILE, keyset_bytes)
        self._take(keyset_bytes)
        known = {key.keyid for key in keyset.directors}
        for path in self._folder.glob("*.key"):
            if _key_id(_load(path)) not in known:
                path.unlink()
        self._keys = {keyid: key for keyid, key in self._keys.items() if keyid in known}

    def _take(self, keyset_bytes: bytes) -> None:
        keyset = read_keyset(keyset_bytes, fleet=self.fleet, held=None)
        for director in keyset.directors:
            if director.keyid not in self._keys:
                raise Refused(Reason.UNKNOWN_KEY, f"the key {director.keyid[:12]} is not here")
        if not keyset.directors:
            raise Refused(Reason.UNKNOWN_KEY, "the keyset does not name the director's key")
        self.keyset_bytes, self.keyset = keyset_bytes, keyset
        self.generation = keyset.generation

    def _make(self, random_bytes: Callable[[int], bytes]) -> PublicKey:
        key = Ed25519PrivateKey.from_private_bytes(random_bytes(32))
        listed = _listed(key)
        _store(self._folder / f"director-{listed.keyid[:12]}.key", key)
        self._keys[listed.keyid] = key
        return listed

    def sign_directive(self, directive: Directive) -> bytes:
        """The directive in an envelope signed by the director key."""
        return self._seal(DIRECTIVE_TYPE, codec.encode_json(directive))

    def sign_assignment(self, assignment: Assignment) -> bytes:
        """The assignment in an envelope signed by the director key."""
        return self._seal(ASSIGNMENT_TYPE, codec.encode_json(assignment))

    def sign_stop(self, stop: Stop) -> bytes:
        """The stop in an envelope signed by the director key."""
        return self._seal(STOP_TYPE, codec.encode_json(stop))

    def sign_bench_job(self, job: BenchJob) -> bytes:
        """The bench job in an envelope signed by the director key."""
        return self._seal(BENCH_JOB_TYPE, codec.encode_json(job))

    def sign_checkpoint(self, payload_type: str, payload: bytes) -> bytes:
        """A statement about the server's own records in an envelope signed by the director key."""
        return self._seal(payload_type, payload)

    def checkpoint_keys(self) -> dict[str, bytes]:
        """The keys whose checkpoints are believed: key id → raw public key."""
        return {key.keyid: bytes.fromhex(key.public) for key in self.keyset.directors}

    def _seal(self, payload_type: str, payload: bytes) -> bytes:
        keyid = self.keyset.directors[0].keyid
        return envelope.seal(payload_type, payload, {keyid: self._keys[keyid].sign})


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
    return Keyring(folder, fleet, _by_id(keys.values()), keyset_bytes, made_now=True)


def _read(folder: Path, fleet: str) -> Keyring:
    try:
        keys = _by_id(_load(path) for path in sorted(folder.glob("*.key")))
        keyset_bytes = (folder / KEYSET_FILE).read_bytes()
        return Keyring(folder, fleet, keys, keyset_bytes, made_now=False)
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
        _store(fresh / f"{name}.key", key)
    durable.write_file(fresh / KEYSET_FILE, keyset_bytes)
    fresh.rename(folder)
    durable.sync_folder(folder.parent)


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _listed(key: Ed25519PrivateKey) -> PublicKey:
    public = _public(key)
    return PublicKey(keyid=envelope.key_id(public), public=public.hex())


def _key_id(key: Ed25519PrivateKey) -> str:
    return envelope.key_id(_public(key))


def _by_id(keys: Iterable[Ed25519PrivateKey]) -> dict[str, Ed25519PrivateKey]:
    return {_key_id(key): key for key in keys}


def _load(path: Path) -> Ed25519PrivateKey:
    text = path.read_text(encoding="ascii").strip()
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(text))


def _store(path: Path, key: Ed25519PrivateKey) -> None:
    durable.write_file(path, key.private_bytes_raw().hex().encode() + b"\n")
