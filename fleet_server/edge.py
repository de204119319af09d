"""What happens to every HTTP request before and after its endpoint.

In this order: it gets a correlation id and an origin for the audit, its size is bounded, it is
counted, and whatever is raised becomes problem+json. Nothing that an endpoint decides is decided
here.
"""

import re
from collections.abc import Callable

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet_server import problem
from fleet_server.audit.origin import ORIGIN, Origin
from fleet_server.clock import Clock
from fleet_server.metrics import Metrics

CORRELATION_HEADER = "X-Correlation-Id"
TICKET_HEADER = "X-Change-Ticket"
_CORRELATION = re.compile(r"^[A-Za-z0-9._-]{1,64}\Z")
_TICKET = re.compile(r"^[A-Za-z0-9._#/-]{1,64}\Z")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
AGENT_CHARACTERS = 100
COMMAND_CHARACTERS = 200

SizeLimit = Callable[[str, str], int]
"""``limit(method, path)``: how many bytes the body may have."""

log = structlog.get_logger(__name__)


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, clock: Clock, metrics: Metrics, limit: SizeLimit) -> None:
        self._app = app
        self._clock = clock
        self._metrics = metrics
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_ms = self._clock.monotonic_ms()
        request = Request(scope)
        correlation_id = self._correlation_id(request)
        scope.setdefault("state", {})["correlation_id"] = correlation_id
        sent: list[int] = []
        body_bytes = 0

        async def send_marked(message: Message) -> None:
            nonlocal body_bytes
            body_bytes += len(message.get("body", b""))
            if message["type"] == "http.response.start":
                sent.append(message["status"])
                header = (CORRELATION_HEADER.lower().encode(), correlation_id.encode())
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        with structlog.contextvars.bound_contextvars(correlation_id=correlation_id):
            try:
                ORIGIN.set(self._origin(request, started_ms))
                limit_bytes = self._limit(scope["method"], scope["path"])
                await self._app(scope, _bounded(request, receive, limit_bytes), send_marked)
            except Exception as error:
                if not isinstance(error, HTTPException):
                    log.exception("request failed", method=scope["method"], path=scope["path"])
                if sent:
                    # The status is out already: cutting the connection is all that is left to say.
                    raise
                answer = problem.respond(
                    problem.describe(error, instance=scope["path"], correlation_id=correlation_id)
                )
                await answer(scope, receive, send_marked)
        self._count(scope, sent[0] if sent else 499, body_bytes, started_ms)

    def _origin(self, request: Request, started_ms: int) -> Origin:
        ticket = request.headers.get(TICKET_HEADER, "")
        if ticket and not _TICKET.match(ticket):
            # A ticket that the audit cannot hold must not be dropped in silence.
            raise HTTPException(400)
        agent = _UNPRINTABLE.sub("?", request.headers.get("user-agent", ""))
        command = _UNPRINTABLE.sub("?", f"{request.method} {request.url.path}")
        return Origin(
            agent=agent[:AGENT_CHARACTERS],
            command=command[:COMMAND_CHARACTERS],
            change_ticket=ticket,
            elapsed_ms=lambda: self._clock.monotonic_ms() - started_ms,
        )

    def _correlation_id(self, request: Request) -> str:
        given = request.headers.get(CORRELATION_HEADER, "")
        return given if _CORRELATION.match(given) else self._clock.random_bytes(8).hex()

    def _count(self, scope: Scope, status: int, body_bytes: int, started_ms: int) -> None:
        # The template, not the path: names of devices would make a series each.
        path = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if path != "unmatched" else "any"
        self._metrics.requests.labels(method, path, str(status)).inc()
        self._metrics.response_bytes.labels(method, path).inc(body_bytes)
        elapsed_ms = self._clock.monotonic_ms() - started_ms
        self._metrics.seconds.labels(method, path).observe(elapsed_ms / 1_000)


def _bounded(request: Request, receive: Receive, limit_bytes: int) -> Receive:
    """``receive`` that refuses a body above the limit: as announced, or as it arrives."""
    announced = request.headers.get("content-length", "0")
    if not announced.isdigit():
        raise HTTPException(400)
    if int(announced) > limit_bytes:
        raise HTTPException(413)
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit_bytes:
            raise HTTPException(413)
        return message

    return receive_bounded
