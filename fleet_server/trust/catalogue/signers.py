"""Who signs for which role: public keys, and where their private halves are to be had.

``signers.json`` maps a role to its keys, each with a URI of securesystemslib (``file2:NAME`` lies
in the same folder; an HSM or a cloud's KMS has a URI of its own) or with none: then the key is
elsewhere, and this server cannot sign for the role. Which role signs what is decided in
:mod:`fleet_server.trust.catalogue.repository`.
"""

from collections.abc import Callable, Mapping
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
from fleet_server.trust import durable

FILE = "signers.json"
FILE_BYTES = 4 * 1024 * 1024
LOCAL = "file2:"


class HeldKey(msgspec.Struct, frozen=True):
    """One key of a role. ``uri`` is empty where the private key is not to be had from here."""

    keyid: str
    public: dict[str, Any]
    uri: str


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

    def can_sign(self, role: str) -> bool:
        """Say whether this server can sign for a role at all."""
        return any(key.uri for key in self._held.get(role, []))

    def public_keys(self, role: str) -> list[Key]:
        """Return the public keys of a role."""
        return [_public(key) for key in self._held[role]]

    def create(self, role: str) -> None:
        """Make a local key for a role that has none. Raises OSError."""
        private = Ed25519PrivateKey.from_private_bytes(self._random_bytes(32))
        signer = CryptoSigner(private)
        name = f"{role}.pem"
        durable.write_file(self._folder / name, signer.private_bytes)
        key = signer.public_key
        held = {**self._held, role: [HeldKey(key.keyid, key.to_dict(), f"{LOCAL}{name}")]}
        durable.write_file(self._folder / FILE, codec.encode_json(held))
        self._held = held

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
            return Signer.from_priv_key_uri(uri, _public(key))
        except (OSError, ValueError, TypeError, SigningError, UnsupportedAlgorithm) as error:
            # Say which key without saying what is in it.
            raise Unavailable(
                "key_unusable", f"The key of role {role} cannot be used: {type(error).__name__}."
            ) from error


def unreadable(why: str) -> StartError:
    """Return the error of a trust folder that cannot be used; fail closed."""
    return StartError(
        "trust_unreadable",
        f"The repository of what exists cannot be used: {why}.",
        "Restore the trust folder of the data folder from its backup. Do not delete it: "
        "devices trust the root in it and no other.",
    )


def _public(key: HeldKey) -> Key:
    return Key.from_dict(key.keyid, dict(key.public))
