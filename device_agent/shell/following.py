"""Following the server to where a file can be had: one step, and only where that is allowed.

Decides which redirects are followed: to an origin that the device was told, over https (http only
on this machine), and never from there to another. Nothing of the device is shown there: no
certificate, no header but the range; the system's authorities vouch for it, not the fleet's.
What comes is checked as if the server had sent it. What to do when it is wrong is decided by
whoever asks; :class:`Route` leads back to the server itself.
"""

import logging
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from urllib.parse import SplitResult, urlsplit

from device_agent.shell.http_source import Answer, HttpFailure, HttpSource
from fleet_contract.manifest import FOLLOWS, FOLLOWS_HEADER

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MOST_ORIGINS = 16
_ADDRESS = re.compile(r"https?://[!-~]{1,8192}\Z")
_PORTS = {"https": 443, "http": 80}
_Origin = tuple[str, str, int]

_LOG = logging.getLogger(__name__)


class Origins:
    """The origins that a device may be led to."""

    def __init__(
        self,
        origins: Sequence[str],
        *,
        ticks_ns: Callable[[], int],
        tls: Callable[[], ssl.SSLContext] | None = None,
        **limits: float,
    ) -> None:
        """Take origins such as ``https://bucket.s3.eu-central-1.amazonaws.com``.

        Args:
            origins: scheme, host and perhaps a port.
            ticks_ns: for the deadlines.
            tls: the context of an https connection; by default the system's authorities vouch.
            limits: those of :class:`HttpSource`.

        Raises:
            ValueError: if one of them is no origin, or http to another machine.
        """
        if len(origins) > MOST_ORIGINS:
            raise ValueError(f"more than {MOST_ORIGINS} origins for downloads")
        self._sources = {
            _origin(origin): HttpSource(
                origin,
                ticks_ns=ticks_ns,
                tls=tls or system_tls,
                **limits,  # type: ignore[arg-type]
            )
            for origin in origins
        }

    def find(self, address: str) -> tuple[HttpSource, str]:
        """Return whom to ask for an address, and for what. Raises HttpFailure if nobody."""
        if not _ADDRESS.match(address):
            raise HttpFailure("the server leads to something that is no address")
        try:
            parts = urlsplit(address)
            source = self._sources.get(_origin_of(parts))
        except ValueError as error:
            raise HttpFailure("the server leads to something that is no address") from error
        if source is None:
            raise HttpFailure(
                f"the server leads to {parts.hostname!r}, which is no allowed origin"[:200]
            )
        query = f"?{parts.query}" if parts.query else ""
        return source, f"{parts.path or '/'}{query}"


class Route:
    """The way of one download: as the server leads, until that was wrong once."""

    def __init__(self, source: HttpSource) -> None:
        self._source = source
        self._leads = source.leads
        self.led = False
        """Whether anything may have come from elsewhere."""

    def turn_back(self, why: object) -> bool:
        """Ask the server itself from now on; False if that was the way already."""
        if self._leads is None or not self.led:
            return False
        _LOG.warning("the file is fetched from the server itself: %s", why)
        self._leads = None
        return True

    @contextmanager
    def ask(
        self,
        path: str,
        *,
        size_bytes: int,
        headers: Mapping[str, str],
        canceled: Callable[[], bool],
    ) -> Iterator[Answer]:
        """Ask for a file as :meth:`HttpSource.ask` does, and follow once.

        Raises:
            HttpFailure: also if the server leads to where the device may not go.
        """
        says = {} if self._leads is None else {FOLLOWS_HEADER: FOLLOWS}
        with self._source.ask(
            "GET", path, size_bytes=size_bytes, headers={**headers, **says}, canceled=canceled
        ) as answer:
            if self._leads is None or answer.status != 307:
                yield answer
                return
            address = answer.header("Location")
        self.led = True
        elsewhere, target = self._leads(address)
        with elsewhere.ask(
            "GET",
            target,
            size_bytes=size_bytes,
            headers=headers,
            verbatim=True,
            canceled=canceled,
        ) as answer:
            if answer.status not in (200, 206):
                raise HttpFailure(f"where the server leads to, the answer is {answer.status}")
            yield answer


def system_tls() -> ssl.SSLContext:
    """Return a context in which the system's authorities vouch, and nothing is shown."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _origin(text: str) -> _Origin:
    parts = urlsplit(text)
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"no origin, which is https://HOST or https://HOST:PORT: {text[:200]!r}")
    return _origin_of(parts)


def _origin_of(parts: SplitResult) -> _Origin:
    if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc:
        raise ValueError("no origin of a download: it begins with https://HOST")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise ValueError("downloads over http come from this machine only; use https")
    return parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme]
