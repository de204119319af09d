"""API tokens: how they are made, found, limited and revoked, and how the first one comes to be.

A token is 32 random bytes, so its plain SHA-256 is all that has to be kept: nobody can guess what
was hashed. Whoever makes a token can give away only what is theirs.
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlmodel import Session

from fleet_contract import names
from fleet_server.access import repository
from fleet_server.access.permissions import Permission
from fleet_server.access.repository import ApiTokenRow
from fleet_server.access.roles import Roles, check_roles, permissions_of
from fleet_server.access.users import User, within
from fleet_server.data_folder import TOKEN_FILE
from fleet_server.errors import Conflict, Forbidden, Invalid, NotFound, StartError, Unauthorized

ADMIN = "admin"
TOKEN_CHARACTERS = 200
PREFIX = "ef_"
ID_DIGITS = 12
DAY_MS = 24 * 3_600_000
SHORTEST_MS = 60_000
LONGEST_MS = 366 * DAY_MS
LIMITS_MOST = 100
SYSTEM = "system"
_USER = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,62}\Z")
_BEGINNING = re.compile(r"^[a-z0-9][a-z0-9_-]{0,62}\*\Z")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a new token shall be for; empty ``fleets`` and ``models`` mean all."""

    user: str
    roles: Sequence[str]
    fleets: Sequence[str]
    models: Sequence[str]
    valid_ms: int


@dataclass(frozen=True, slots=True)
class Made:
    """A new token; it is not kept and cannot be shown again."""

    token: str
    row: ApiTokenRow


def hash_secret(secret: str) -> str:
    """SHA-256 of a random secret, in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def authenticate(session: Session, roles: Roles, token: str, *, fleet: str, now_ms: int) -> User:
    """Return whose token this is, and what it allows.

    Raises:
        Unauthorized: if it is nobody's, or no longer valid.
        Forbidden: if it is for other fleets.
    """
    row = None
    if 0 < len(token) <= TOKEN_CHARACTERS:
        row = repository.by_hash(session, hash_secret(token))
    if row is None:
        raise Unauthorized(
            "unknown_token",
            "This token is not known.",
            "Use the token in the file admin-token of the server's data folder, or one of "
            "edgefleet token create.",
        )
    if row.revoked_ms or (row.expires_ms and row.expires_ms <= now_ms):
        what = "revoked" if row.revoked_ms else "expired"
        raise Unauthorized(
            f"token_{what}", f"The token {row.id} has {_been(what)}.", "Ask an admin for a new one."
        )
    user = User(
        row.user,
        tuple(row.roles),
        permissions_of(roles, row.roles),
        tuple(row.fleets),
        tuple(row.models),
    )
    if user.fleets and fleet not in user.fleets:
        raise Forbidden(
            "other_fleet",
            f"Your token is for the fleets {', '.join(user.fleets)} only; this is {fleet}.",
            "Ask for a token of this fleet.",
        )
    return user


def create_token(
    session: Session,
    roles: Roles,
    wanted: Wanted,
    *,
    by: User,
    random_bytes: Callable[[int], bytes],
    now_ms: int,
) -> Made:
    """Make a token.

    Raises:
        Invalid: for a user, role, fleet, family or duration that cannot be.
        Forbidden: if it would allow more than its maker may do.
    """
    _check(roles, wanted)
    if not permissions_of(roles, wanted.roles) <= by.permissions or not (
        within(by.fleets, wanted.fleets) and within(by.models, wanted.models)
    ):
        raise Forbidden(
            "more_than_yours",
            "A token can allow no more than its maker may do.",
            "Ask somebody who has these roles, or name your own fleets and models.",
        )
    token = PREFIX + random_bytes(32).hex()
    row = _add(
        session,
        token,
        user=wanted.user,
        roles=sorted(set(wanted.roles)),
        fleets=sorted(set(wanted.fleets)),
        models=sorted(set(wanted.models)),
        created_by=by.name,
        created_ms=now_ms,
        expires_ms=now_ms + wanted.valid_ms,
    )
    return Made(token, row)


def tokens(session: Session) -> list[ApiTokenRow]:
    """Return all tokens, the newest first, without what would let anybody in."""
    return repository.everything(session)


def revoke_token(session: Session, roles: Roles, token: str, *, now_ms: int) -> ApiTokenRow:
    """Make a token worthless from now on; once more does no harm.

    Raises:
        NotFound: if there is none of this id.
        Conflict: if nobody could make tokens any more.
    """
    row = repository.by_id(session, token, lock=True)
    if row is None:
        raise NotFound(
            "no_such_token", f"There is no token {token[:40]!r}.", "List: edgefleet token list"
        )
    if row.revoked_ms:
        return row
    others = [
        other
        for other in repository.everything(session)
        if other.id != row.id
        and not other.revoked_ms
        and not other.models
        and (not other.expires_ms or other.expires_ms > now_ms)
    ]
    if _makes_tokens(roles, row) and not any(_makes_tokens(roles, other) for other in others):
        raise Conflict(
            "last_admin",
            "This is the last token that may make tokens.",
            "Make another first: edgefleet token create NAME --role admin",
        )
    row.revoked_ms = now_ms
    repository.save(session, row)
    return row


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
    _add(
        session,
        token,
        user=ADMIN,
        roles=[ADMIN],
        fleets=[],
        models=[],
        created_by=SYSTEM,
        created_ms=now_ms,
        expires_ms=0,
    )
    return True


def _add(session: Session, token: str, **values: object) -> ApiTokenRow:
    hashed = hash_secret(token)
    return repository.add(session, token_hash=hashed, id=hashed[:ID_DIGITS], **values)


def _check(roles: Roles, wanted: Wanted) -> None:
    if not _USER.match(wanted.user) or wanted.user == SYSTEM:
        raise Invalid(
            "bad_user",
            "The user's name is not allowed.",
            "Use up to 63 letters, digits and . _ @ + -, for example ann@example.org.",
        )
    if not wanted.roles:
        raise Invalid("no_role", "A token needs a role.", "For example viewer.")
    check_roles(roles, wanted.roles)
    for limit in (wanted.roles, wanted.fleets, wanted.models):
        if len(limit) > LIMITS_MOST:
            raise Invalid("too_many", f"A token names at most {LIMITS_MOST} of each.")
    for fleet in wanted.fleets:
        names.check_identity(fleet, "fleet")
    for family in wanted.models:
        if not _BEGINNING.match(family):
            names.check_model(family)
    if not SHORTEST_MS <= wanted.valid_ms <= LONGEST_MS:
        raise Invalid("bad_duration", "A token is valid for a minute to 366 days.")


def _makes_tokens(roles: Roles, row: ApiTokenRow) -> bool:
    return not row.models and Permission.TOKENS in permissions_of(roles, row.roles)


def _been(what: str) -> str:
    return "been revoked" if what == "revoked" else "expired"


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
