"""HTTP as a device uses it: one request, one bounded answer, no redirects, a deadline for it all.

Decides what is taken from a server that may be broken or hostile: an answer has to keep moving,
to end in time, and to be no larger than the caller says. Ranges, hashes and files are the
downloader's business.
"""

import http.client
import io
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

from device_agent.errors import AnchorsUnusable, IdentityUnusable, StepFailed
from device_agent.shell.tls import Trouble, trouble_of
from fleet_contract.errors import Reason

CONNECT_S = 10.0
STALL_S = 20.0
"""An answer that brings nothing for so long has ended."""
HEADERS_S = 30.0
"""Until the body begins, and for the slack of short ones."""
LEAST_RATE = 4 * 1024
"""Bytes a second, over the whole body: slower ones are broken off and resumed later."""
CHUNK_BYTES = 128 * 1024
_SLICE_S = 0.5
"""How often a waiting read looks whether it is still wanted."""


class Canceled(Exception):
    """Nobody waits for this answer any more."""


class HttpFailure(Exception):
    """No usable answer: no connection, a broken or slow one, or one against the protocol.

    ``trouble`` says so if anchors or certificate are to blame.
    """

    def __init__(self, sentence: str, trouble: Trouble | None = None) -> None:
        super().__init__(sentence)
        self.trouble = trouble


class Answer:
    """The head of an answer, and its body in pieces."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.status = response.status

    def header(self, name: str) -> str:
        """Return a header, empty if there is none."""
        return self._response.getheader(name) or ""

    @property
    def length_bytes(self) -> int | None:
        """What the answer says its body has."""
        return self._response.length

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it arrives. Raises HttpFailure or Canceled."""
        while True:
            with _wrapped():
                piece = self._response.read1(CHUNK_BYTES)
            if not piece:
                return
            yield piece

    def read(self, limit_bytes: int) -> bytes:
        """Return a body of at most so many bytes. Raises HttpFailure or Canceled."""
        body = b""
        for piece in self.pieces():
            body += piece
            if len(body) > limit_bytes:
                raise HttpFailure(f"the answer is longer than {limit_bytes} bytes")
        if self.length_bytes:
            raise HttpFailure("the connection ended before the answer did")
        return body


Leads = Callable[[str], "tuple[HttpSource, str]"]
"""From an address that a redirect names to whom to ask, and for what; raises HttpFailure."""


class HttpSource:
    """A server that is asked with one connection a request. Thread-safe.

    Attributes:
        leads: where it may lead to, None for nowhere; following is the caller's to do.
    """

    def __init__(
        self,
        url: str,
        *,
        ticks_ns: Callable[[], int],
        tls: Callable[[], ssl.SSLContext] | None = None,
        unvouched: Callable[[], ssl.SSLContext] | None = None,
        leads: Leads | None = None,
        headers_s: float = HEADERS_S,
        stall_s: float = STALL_S,
        least_rate: int = LEAST_RATE,
    ) -> None:
        """Take the URL below which paths are asked for.

        Args:
            url: http or https.
            ticks_ns: for the deadlines.
            tls: the context of an https connection, asked for at each.
            unvouched: if what is asked for proves itself, the context that is used once nobody
                vouches for the server.
            leads: where it may lead to.
            headers_s, stall_s, least_rate: how slow an answer may be.

        Raises:
            ValueError: if it is no such URL, or https without ``tls``.
        """
        self._tls = tls
        self._unvouched = unvouched
        self.leads = leads
        self.move_to(url)
        self._ticks_ns = ticks_ns
        self._headers_s = headers_s
        self._stall_s = stall_s
        self._least_rate = least_rate

    def move_to(self, url: str) -> None:
        """Ask below another URL from the next request on. Raises ValueError if it is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http or https address: {url[:200]!r}")
        if parts.scheme == "https" and self._tls is None:
            raise ValueError(f"no certificates to speak https with: {url[:200]!r}")
        self._place = (parts.scheme == "https", parts.hostname, parts.port, parts.path.rstrip("/"))

    @contextmanager
    def ask(
        self,
        method: str,
        path: str,
        *,
        size_bytes: int,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        verbatim: bool = False,
        canceled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Answer]:
        """Send a request below the URL and yield the answer while the connection is open.

        Args:
            method: GET or POST.
            path: below the URL of this source, without a leading slash; what is quoted in it
                already stays as it is.
            size_bytes: of the longest body; sets how long the answer may take.
            headers: beside the usual ones.
            body: of a POST.
            verbatim: ``path`` is sent as it is: from its leading slash on, with what was signed.
            canceled: asked now and then; the answer is given up once it says yes.

        Raises:
            HttpFailure: if there is no usable answer. Canceled: if nobody wants it any more.
        """
        allowed_s = self._headers_s + size_bytes / self._least_rate
        end_ns = self._ticks_ns() + int(allowed_s * 1e9)

        class Response(http.client.HTTPResponse):
            """Reads through a file that keeps the deadline, from the status line on."""

            def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
                super().__init__(sock, *args, **options)
                self.fp.close()
                self.fp = io.BufferedReader(raw_of(sock), CHUNK_BYTES)

        def raw_of(sock: socket.socket) -> "_Watched":
            return _Watched(sock, self._ticks_ns, end_ns, self._stall_s, canceled)

        lines = {"Accept-Encoding": "identity", "Connection": "close", **(headers or {})}
        secure, host, port, base = self._place
        target = path if verbatim else f"{base}/{quote(path, safe='/%')}"

        def open_with(tls: Callable[[], ssl.SSLContext] | None) -> http.client.HTTPConnection:
            connection = (
                http.client.HTTPConnection(host, port, timeout=CONNECT_S)
                if tls is None
                else http.client.HTTPSConnection(host, port, timeout=CONNECT_S, context=tls())
            )
            connection.response_class = Response
            try:
                connection.request(method, target, body, lines)
            except BaseException:
                connection.close()
                raise
            return connection

        with _wrapped():
            try:
                connection = open_with(self._tls if secure else None)
            except (ssl.SSLCertVerificationError, AnchorsUnusable):
                if self._unvouched is None:
                    raise
                connection = open_with(self._unvouched)
        try:
            with _wrapped():
                response = connection.getresponse()
            with response:
                if response.getheader("Content-Encoding", "identity") != "identity":
                    raise HttpFailure("the answer is encoded, which was not asked for")
                yield Answer(response)
        finally:
            connection.close()

    def get(self, path: str, *, limit_bytes: int, canceled: Callable[[], bool]) -> bytes:
        """Return a small document.

        Raises:
            StepFailed: ``download_failed`` if it cannot be had. Canceled: if nobody wants it.
        """
        try:
            with self.ask("GET", path, size_bytes=limit_bytes, canceled=canceled) as answer:
                if answer.status != 200:
                    raise HttpFailure(f"the server answers {answer.status}")
                return answer.read(limit_bytes)
        except HttpFailure as error:
            raise StepFailed(Reason.DOWNLOAD_FAILED, f"{path}: {error}"[:300]) from error


class _Watched(io.RawIOBase):
    """A socket as a file that gives up at a deadline, after a stall, or when told to."""

    def __init__(
        self,
        sock: socket.socket,
        ticks_ns: Callable[[], int],
        end_ns: int,
        stall_s: float,
        canceled: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._socket = sock
        # As long as this file is open, closing the socket puts off its end: http.client closes it
        # as soon as the headers are read.
        self._hold = sock.makefile("rb", buffering=0)
        self._ticks_ns = ticks_ns
        self._end_ns = end_ns
        self._stall_ns = int(stall_s * 1e9)
        self._canceled = canceled

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        began_ns = self._ticks_ns()
        while True:
            now_ns = self._ticks_ns()
            if self._canceled():
                raise Canceled
            if now_ns >= self._end_ns:
                raise HttpFailure("the answer is too slow")
            if now_ns - began_ns >= self._stall_ns:
                raise HttpFailure("the answer stalled")
            self._socket.settimeout(_SLICE_S)
            try:
                return self._socket.recv_into(buffer)
            except TimeoutError:
                continue

    def close(self) -> None:
        if not self.closed:
            self._hold.close()
        super().close()


@contextmanager
def _wrapped() -> Iterator[None]:
    """Turn whatever the network and the protocol may raise into HttpFailure."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        sentence = f"{type(error).__name__}: {error}"[:300]
        raise HttpFailure(sentence, trouble_of(error)) from error
    except IdentityUnusable as error:
        raise HttpFailure(f"{error}"[:300], trouble_of(error)) from error
