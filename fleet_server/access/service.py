"""Which token belongs to whom, and how the first one comes into being.

A token is 32 random bytes, so its plain SHA-256 is all that has to be kept: nobody can guess what
was hashed. What a user may do is not decided here yet: an operator may do everything.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlmodel import Session

from fleet_server.access import repository
from fleet_server.data_folder import TOKEN_FILE
from fleet_server.errors import StartError, Unauthorized

ADMIN = "admin"
TOKEN_CHARACTERS = 200
PREFIX = "ef_"


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who operates the fleet."""

    name: str


def hash_secret(secret: str) -> str:
    """SHA-256 of a random secret, in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def authenticate(session: Session, token: str) -> User:
    """Return whose token this is.

    Raises:
        Unauthorized: if it is nobody's.
    """
    user = None
    if 0 < len(token) <= TOKEN_CHARACTERS:
        user = repository.user_of(session, hash_secret(token))
    if user is None:
        raise Unauthorized(
            "unknown_token",
            "This token is not known.",
            "Use the token in the file admin-token of the server's data folder.",
        )
    return User(user)


def ensure_admin_token(
    session: Session, folder: Path, *, random_bytes: Callable[[int], bytes], now_ms: int
) -> bool:
    """Make the first token, in ``folder``/admin-token, unless there is one already.

    The file is written before the row is committed: a crash in between leaves a file whose token
    the next start takes over, never a token that nobody knows.

    Returns:
        Whether a token was added.

    Raises:
        StartError: if the file cannot be read or written.
    """
    if repository.has_tokens(session):
        return False
    path = folder / TOKEN_FILE
    try:
        if path.exists():
            token = path.read_text(encoding="ascii").strip()
        else:
            token = PREFIX + random_bytes(32).hex()
            _write(path, token)
    except (OSError, ValueError) as error:
        raise StartError(
            "token_file",
            f"The file {path} cannot be used: {type(error).__name__}.",
            "Make the data folder writable for the server, or remove a damaged file.",
        ) from error
    if len(token) < 32:
        raise StartError(
            "token_file", f"The file {path} holds no token.", "Remove it and start again."
        )
    repository.add(session, token_hash=hash_secret(token), user=ADMIN, now_ms=now_ms)
    return True


def _write(path: Path, token: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    # Readable by the owner only, from its first moment on.
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
