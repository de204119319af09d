"""Who signs for which role: public keys, and where their private halves are to be had.

``signers.json`` maps a role to its keys, each with a URI of securesystemslib (``file2:NAME`` lies
in the same folder; an HSM or a cloud's KMS has a URI of its own) or with none: then the key is
elsewhere, and this server cannot sign for the role. Which role signs what is decided in
:mod:`fleet_server.trust.catalogue.repository`.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.exceptions import Error as SigningError
from securesystemslib.signer import CryptoSigner, Key, Signer

from fleet_contract import codec
from fleet_contract.errors import Refused
from fleet_server.errors import StartError, Unavailable
from fleet_server.trust import durable, pin

FILE = "signers.json"
FILE_BYTES = 4 * 1024 * 1024
LOCAL = "file2:"


class HeldKey(msgspec.Struct, frozen=True):
    """One key of a role. ``uri`` is empty where the private key is not to be had from here."""

    keyid: str
    public: dict[str, Any]
    uri: str

    def key(self) -> Key:
        """Return the public key as python-tuf knows it."""
        return Key.from_dict(self.keyid, dict(self.public))


class Signers:
    """The keys of all roles, below one folder that only its owner may enter."""

    def __init__(
        self,
        folder: Path,
        held: Mapping[str, list[HeldKey]],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._folder = folder
        self._held = dict(held)
        self._random_bytes = random_bytes

    @classmethod
    def make(cls, folder: Path, random_bytes: Callable[[int], bytes]) -> "Signers":
        """Return signers without any role, in a folder made for them. Raises OSError."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(folder, {}, random_bytes)

    @classmethod
    def open(cls, folder: Path, random_bytes: Callable[[int], bytes]) -> "Signers":
        """Return the signers in a folder; every key that has a URI is tried.

        Raises:
            StartError: if the list or a key in it cannot be read: no new key ever takes its place.
        """
        try:
            data = (folder / FILE).read_bytes()
            held = codec.decode_json(data, dict[str, list[HeldKey]], limit_bytes=FILE_BYTES)
        except (OSError, Refused) as error:
            raise unreadable(f"{FILE}: {type(error).__name__}") from error
        signers = cls(folder, held, random_bytes)
        for role, keys in held.items():
            if any(key.uri for key in keys):
                try:
                    signers.of(role)
                except Unavailable as error:
                    raise unreadable(error.detail) from error
        return signers

    def knows(self, role: str) -> bool:
        """Say whether there are keys for a role, here or elsewhere."""
        return role in self._held

    def public_keys(self, role: str) -> list[Key]:
        """Return the public keys of a role."""
        return [key.key() for key in self._held[role]]

    def held(self, role: str) -> list[HeldKey]:
        """Return the keys of a role, wherever their private halves are."""
        return list(self._held.get(role, []))

    def roles(self) -> list[str]:
        """Return the roles that have keys."""
        return [role for role, keys in self._held.items() if keys]

    def make_key(self, role: str) -> HeldKey:
        """Make a local key, which signs for nobody before :meth:`replace`. Raises OSError."""
        private = Ed25519PrivateKey.from_private_bytes(self._random_bytes(32))
        signer = CryptoSigner(private)
        key = signer.public_key
        # A role's first key has its name; the file of another must not take its place.
        name = f"{role}.pem" if not self.knows(role) else f"{role}-{key.keyid[:12]}.pem"
        durable.write_file(self._folder / name, signer.private_bytes)
        return HeldKey(key.keyid, key.to_dict(), f"{LOCAL}{name}")

    def replace(self, changes: Mapping[str, list[HeldKey]]) -> None:
        """Give roles other keys, all in one. Raises OSError."""
        held = {**self._held, **changes}
        durable.write_file(self._folder / FILE, codec.encode_json(held))
        self._held = held

    def drop_unused(self, proposed: Iterable[HeldKey] = ()) -> None:
        """Remove private keys that no role has any more, nor any of the ``proposed``."""
        keys = [key for keys in self._held.values() for key in keys]
        used = {key.uri.removeprefix(LOCAL) for key in (*keys, *proposed)}
        for path in self._folder.glob("*.pem"):
            if path.name not in used:
                with contextlib.suppress(OSError):
                    path.unlink()

    def signer_of(self, role: str, key: HeldKey) -> Signer:
        """Return what signs with a key that has a URI.

        Raises:
            Unavailable: if it cannot be used.
        """
        return self._signer(role, key)

    def of(self, role: str) -> list[Signer]:
        """Return what signs for a role.

        Raises:
            Unavailable: if none of its keys is here, or one that should be cannot be used.
        """
        signers = [self._signer(role, key) for key in self._held.get(role, []) if key.uri]
        if not signers:
            raise Unavailable(
                "role_offline",
                f"The key of role {role} is not on this server.",
                "Sign where that key is.",
            )
        return signers

    def _signer(self, role: str, key: HeldKey) -> Signer:
        uri = key.uri
        if uri.startswith(LOCAL):
            # An absolute path stays what it is.
            uri = f"{LOCAL}{self._folder / uri.removeprefix(LOCAL)}"
        try:
            return Signer.from_priv_key_uri(uri, key.key(), pin.from_environment)
        except (OSError, ValueError, TypeError, SigningError, UnsupportedAlgorithm) as error:
            # Say which key without saying what is in it.
            raise Unavailable(
                "key_unusable",
                f"The key of role {role} cannot be used: {type(error).__name__}.",
                "Look at its URI in trust/keys/signers.json, and whether it leads anywhere; "
                f"an HSM wants its PIN in {pin.VARIABLE}.",
            ) from error


def unreadable(why: str) -> StartError:
    """Return the error of a trust folder that cannot be used; fail closed."""
    return StartError(
        "trust_unreadable",
        f"The repository of what exists cannot be used: {why}.",
        "Restore the trust folder of the data folder from its backup. Do not delete it: "
        "devices trust the root in it and no other.",
    )
