"""Which locations the server records or would read: URIs and paths below allowed beginnings.

A location that climbs (``..``), that means another home (``~``), or that is written in a way that
two programs may read differently is none, whatever it begins with.
"""

import re
from collections.abc import Sequence

from fleet_server.errors import Invalid

LOCATION_CHARACTERS = 1_000
# No spaces, quotes, backslashes, control characters, and nothing beyond ASCII.
_PLAIN = re.compile(r"^[A-Za-z0-9:/._@%+=,&?#-]+\Z")
_BEGINNING = re.compile(r"^(?:[a-z][a-z0-9+.-]{0,19}://|/[A-Za-z0-9._-])[A-Za-z0-9:/._@%+=,-]*\Z")
_CODED = re.compile(r"%(2[ef]|5c|7e|25|0|1)", re.IGNORECASE)


def check_location(text: str, allowed: Sequence[str], what: str = "location") -> str:
    """Return the location if it may be recorded.

    Args:
        text: a URI or an absolute path.
        allowed: beginnings, for example ``s3://models/`` or ``/srv/models/``.
        what: what lies there, for the message; the location itself may hold a secret.

    Raises:
        Invalid: if it does not begin with one of them, or may lead elsewhere.
    """
    if not 0 < len(text) <= LOCATION_CHARACTERS or not _PLAIN.match(text):
        raise _refuse(
            what, allowed, "it is empty, too long, or has characters that it may not have"
        )
    if ".." in text or "~" in text or _CODED.search(text):
        raise _refuse(what, allowed, "it has '..' or '~' in it, as it stands or coded")
    beginning = next((item for item in allowed if text.startswith(item)), None)
    if beginning is None:
        raise _refuse(what, allowed, "it does not begin as an allowed one")
    # s3://models must not allow s3://models-of-somebody-else.
    rest = text[len(beginning) :]
    if not rest or not (beginning.endswith("/") or rest.startswith("/")):
        raise _refuse(what, allowed, "it does not lead below an allowed one")
    if "@" in text.partition("://")[2].partition("/")[0]:
        raise _refuse(what, allowed, "it names a user, and a password may not be recorded")
    return text


def beginnings(setting: str) -> list[str]:
    """Return the allowed beginnings of a setting, which separates them by spaces.

    Raises:
        ValueError: for one that begins no URI and no absolute path, or that leads elsewhere.
    """
    found = setting.split()
    for item in found:
        wrong = ".." in item or "~" in item or _CODED.search(item)
        if wrong or not _BEGINNING.match(item):
            raise ValueError(f"{item[:80]!r} is no beginning such as s3://models/ or /srv/models/")
    return found


def _refuse(what: str, allowed: Sequence[str], why: str) -> Invalid:
    return Invalid(
        "bad_location",
        f"The {what} is not allowed: {why}.",
        f"It may begin with {' or '.join(allowed) or 'nothing'}, as the server's setting "
        "allowed_locations says; or leave it out of the metadata.",
    )
