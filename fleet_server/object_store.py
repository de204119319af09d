"""A bucket of objects at somebody else's: files are put there, listed, removed, and lent by URL.

Decides how one is reached, and that whatever goes wrong there is one error. What is kept in it and
who gets a URL are decided by those who use it. Credentials are the provider's own affair: they come
from its variables and files, never from a setting, since settings can be seen.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fleet_server.errors import StartError, Unavailable

SCHEMES = ("s3", "gs", "az", "file")
LENT_S = 300
"""A URL is good for so long; a download that began before may take longer."""
RETRIES = 5
"""After a refused connection or a 5xx, with pauses: 5 to 21 s, in which a restart goes by."""
_PAUSE = timedelta(seconds=1)
_LONGEST_PAUSE = timedelta(seconds=5)
_TRYING = timedelta(seconds=90)
_PART_BYTES = 5 * 1024 * 1024
"""The least that S3 takes; one request has 30 s by default (the library's variables change it)."""
_PARTS_AT_ONCE = 2
_CODE = re.compile(r"<Code>([A-Za-z]{1,64})</Code>")
"""What went wrong, as S3, Google's and Azure's answers say it."""
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})


class ObjectStore:
    """Objects below one URL, by their keys. Thread-safe."""

    def __init__(self, objects: Any, *, lends: bool) -> None:
        self._objects = objects
        self._lends = lends

    def put(self, key: str, path: Path) -> None:
        """Put a file there; all of it appears at once, and takes the place of what was there.

        Raises:
            Unavailable: if it cannot be put.
        """
        with _reached("put"):
            self._objects.put(key, path, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)

    def remove(self, key: str) -> None:
        """Remove an object, if it is there. Raises Unavailable, also if its bucket is not there."""
        with _reached("removed"):
            try:
                self._objects.delete(key)
            except FileNotFoundError as error:
                if _code(error) in _NO_BUCKET:
                    raise

    def sizes(self, beginning: str) -> dict[str, int]:
        """Return key and size in bytes of all objects below a folder. Raises Unavailable."""
        with _reached("listed"):
            found = (item for page in self._objects.list(beginning) for item in page)
            return {item["path"]: item["size"] for item in found}

    def lend(self, key: str) -> str | None:
        """Return a URL by which anybody may get the object for :data:`LENT_S` seconds.

        None where there are no such URLs. Raises Unavailable.
        """
        if not self._lends:
            return None
        import obstore

        with _reached("lent"):
            return obstore.sign(self._objects, "GET", key, timedelta(seconds=LENT_S))


def open_object_store(url: str) -> ObjectStore | None:
    """Return the object store at a URL, None for an empty one; nothing is asked of it yet.

    Raises:
        StartError: if the URL or the provider's variables mean nothing, or the extra is missing.
    """
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not (parts.netloc or parts.scheme == "file"):
        raise _refuse("the URL is of no known kind: s3://, gs://, az:// or file://")
    if parts.username or parts.query or parts.fragment:
        raise _refuse("credentials and options do not belong into the URL")
    try:
        from obstore.exceptions import BaseError
        from obstore.store import LocalStore, from_url
    except ImportError as error:
        raise StartError(
            "no_obstore",
            "The setting object_store needs a package that is not installed.",
            "Install it: pip install 'edgefleet[objects]'",
        ) from error
    try:
        if parts.scheme == "file":
            return ObjectStore(LocalStore(Path(parts.path), mkdir=True), lends=False)
        return ObjectStore(
            # Client options are the variables' to say: given here, they would replace all of them.
            from_url(
                url,
                retry_config={
                    "max_retries": RETRIES,
                    "retry_timeout": _TRYING,
                    "backoff": {"init_backoff": _PAUSE, "max_backoff": _LONGEST_PAUSE, "base": 2},
                },
            ),
            lends=True,
        )
    except (BaseError, OSError, ValueError) as error:
        # The text of the error may quote a variable with a secret.
        raise _refuse(f"{type(error).__name__} while it was opened") from error


def _refuse(why: str) -> StartError:
    return StartError(
        "bad_setting",
        f"The setting object_store cannot be used: {why}.",
        "See docs/guides/artifact-store.md; credentials come from the provider's own variables.",
    )


@contextmanager
def _reached(what: str) -> Iterator[None]:
    """Turn whatever the library raises into one error that holds no secret."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError, ValueError) as error:
        raise Unavailable(
            "object_store_failed",
            f"An object could not be {what}: {_code(error) or type(error).__name__}.",
            "See whether the object store answers and its credentials are right; then try again.",
        ) from error


def _code(error: Exception) -> str | None:
    """Return the provider's word for what went wrong: of all its answer, this holds no secret."""
    found = _CODE.search(str(error))
    return found[1] if found else None
