"""Keys that are not on the server: made, found and used where the person is who holds them.

A private key is a PEM file (PKCS 8, not encrypted, mode 0600: keep it on an encrypted medium), or
lies behind a URI of securesystemslib (an HSM, a cloud's KMS). Which signatures are wanted is
decided by the server, and whether to give them by the person.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.exceptions import Error as SigningError
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey

from fleet_server.errors import Invalid
from fleet_server.trust import durable
from fleet_server.trust.catalogue.signers import HeldKey
from fleet_server.trust.pin import Ask, from_environment

PEM_BYTES = 64 * 1024
_FOREIGN = (OSError, ValueError, TypeError, SigningError, UnsupportedAlgorithm)


def make_keys(folder: Path, role: str, count: int) -> dict[str, CryptoSigner]:
    """Make keys in ``folder``: ``ROLE-1.pem`` and so on; none is ever overwritten.

    Returns:
        File name → key, of those that were made now.

    Raises:
        Invalid: if they cannot be written.
    """
    made: dict[str, CryptoSigner] = {}
    number = 0
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while len(made) < count:
            number += 1
            path = folder / f"{role}-{number}.pem"
            if not path.exists():
                signer = CryptoSigner.generate_ed25519()
                durable.write_file(path, signer.private_bytes)
                made[path.name] = signer
    except OSError as error:
        raise Invalid(
            "keys_unwritable",
            f"Keys cannot be written to {folder}: {error.strerror}.",
            "Name a folder that you may write, on a medium that leaves this machine.",
        ) from error
    return made


def find_keys(folder: Path) -> list[CryptoSigner]:
    """Return every private key that lies as a PEM file in ``folder``.

    Raises:
        Invalid: if there is none.
    """
    found = []
    for path in sorted(folder.glob("*.pem")):
        try:
            found.append(CryptoSigner(load_pem_private_key(_read(path), None)))
        except _FOREIGN:
            continue  # A public key or another file; what is missing shows soon enough.
    if not found:
        raise Invalid(
            "no_keys", f"There is no usable private key in {folder}.", "Name the folder of yours."
        )
    return found


def read_private(path: Path) -> CryptoSigner:
    """Return a private key from a PEM file.

    Raises:
        Invalid: if it is none.
    """
    try:
        return CryptoSigner(load_pem_private_key(_read(path), None))
    except _FOREIGN as error:
        raise Invalid(
            "not_a_key", f"{path} is no private key in PEM: {type(error).__name__}."
        ) from error


def read_public(path: Path) -> HeldKey:
    """Return a public key from a PEM file; a private one will do, and only its public half is used.

    Raises:
        Invalid: if it is none.
    """
    try:
        data = _read(path)
        if b"PRIVATE KEY" in data:
            key: Key = CryptoSigner(load_pem_private_key(data, None)).public_key
        else:
            key = SSlibKey.from_crypto(load_pem_public_key(data))
    except _FOREIGN as error:
        raise Invalid(
            "not_a_key", f"{path} is no public key in PEM: {type(error).__name__}."
        ) from error
    return held(key)


def held(key: Key) -> HeldKey:
    """Return a key whose private half is elsewhere."""
    return HeldKey(key.keyid, key.to_dict(), "")


def sign(
    data: bytes,
    wanted: Sequence[HeldKey],
    keys: Sequence[CryptoSigner],
    uris: Sequence[str],
    ask: Ask = from_environment,
) -> dict[str, str]:
    """Return key id → signature in hexadecimal, by every wanted key that is at hand.

    ``ask`` is called for the PIN of an HSM.
    """
    found = {}
    for item in wanted:
        for signer in keys:
            if signer.public_key.keyid == item.keyid:
                found[item.keyid] = signer.sign(data).signature
    for uri in uris:
        by = _sign_by_uri(data, wanted, uri, ask)
        if by is not None:
            found[by[0]] = by[1]
    return found


def _sign_by_uri(
    data: bytes, wanted: Sequence[HeldKey], uri: str, ask: Ask
) -> tuple[str, str] | None:
    # A URI does not say which key it is: the one that verifies is it.
    for item in wanted:
        key = item.key()
        try:
            signature: Any = Signer.from_priv_key_uri(uri, key, ask).sign(data)
            key.verify_signature(signature, data)
        except _FOREIGN:
            continue
        return item.keyid, signature.signature
    return None


def unusable(uri: str, key: HeldKey, ask: Ask = from_environment) -> str:
    """Return why a URI leads to no key that could sign, empty if it does."""
    try:
        Signer.from_priv_key_uri(uri, key.key(), ask)
    except _FOREIGN as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(PEM_BYTES + 1)
    if len(data) > PEM_BYTES:
        raise ValueError("too large for a key")
    return data
