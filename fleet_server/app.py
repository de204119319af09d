"""The server as one application: its routes, its errors, its probes.

What runs behind the routes is in :mod:`fleet_server.parts`; how the application gets a socket is in
:mod:`fleet_server.serving`.
"""

import re
from collections.abc import Callable

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from fleet_contract.errors import ContractError
from fleet_server import api_document, parts, problem
from fleet_server.access import endpoints as access_endpoints
from fleet_server.access.authentication import require_operator
from fleet_server.audit import endpoints as audit_endpoints
from fleet_server.audit import service as audit
from fleet_server.backup import endpoints as backup_endpoints
from fleet_server.backup import marker
from fleet_server.benches import endpoints as benches_endpoints
from fleet_server.clock import Clock, SystemClock
from fleet_server.collection import endpoints as collection_endpoints
from fleet_server.deltas import endpoints as deltas_endpoints
from fleet_server.devices import authority_endpoints, identity_endpoints, token_endpoints
from fleet_server.devices import endpoints as devices_endpoints
from fleet_server.devices.authentication import device_or_operator
from fleet_server.edge import Edge
from fleet_server.errors import DomainError
from fleet_server.metrics import Metrics
from fleet_server.releases import card_endpoints, lifecycle_endpoints, resumable_endpoints
from fleet_server.releases import endpoints as releases_endpoints
from fleet_server.rollouts import endpoints as rollouts_endpoints
from fleet_server.settings import Settings
from fleet_server.telemetry import endpoints as telemetry_endpoints
from fleet_server.trust import ceremonies
from fleet_server.trust import endpoints as trust_endpoints

ROUTERS = (
    trust_endpoints.router,
    token_endpoints.making,
    token_endpoints.router,
    identity_endpoints.router,
    authority_endpoints.router,
    ceremonies.router,
    ceremonies.families,
    backup_endpoints.router,
    devices_endpoints.router,
    benches_endpoints.devices,
    benches_endpoints.operators,
    telemetry_endpoints.router,
    collection_endpoints.router,
    resumable_endpoints.router,
    releases_endpoints.models,
    lifecycle_endpoints.router,
    card_endpoints.router,
    deltas_endpoints.router,
    # Before the store itself, which takes every path.
    deltas_endpoints.store_router(device_or_operator),
    releases_endpoints.store_router(device_or_operator),
    rollouts_endpoints.router,
    access_endpoints.router,
    audit_endpoints.audit_router(require_operator),
)
_UPLOAD = re.compile(r"^/v1/models/[^/]+/releases/?\Z")
_PART = re.compile(r"^/v1/uploads/[^/]+/?\Z")
_DESCRIPTION = """Rolls out models to a fleet of devices, and takes them back.

Operators send `Authorization: Bearer TOKEN`; the first token is in the file `admin-token` of the
server's data folder. Each operation says which permission it needs. Errors are
`application/problem+json`. Times are milliseconds since 1970. Every answer has an
`X-Correlation-Id`; send one to find your call in the log and in the audit. Send `X-Change-Ticket`
to have the ticket in the audit, too.
"""

log = structlog.get_logger(__name__)


def create_app(settings: Settings, clock: Clock | None = None) -> FastAPI:
    """Return the application; its lifespan starts and stops everything that it needs.

    Starting raises StartError where an operator has to do something.
    """
    app = FastAPI(
        title="edgefleet",
        version="1",
        description=_DESCRIPTION,
        lifespan=parts.running,
        responses=problem.RESPONSES,
    )
    app.state.settings = settings
    app.state.clock = clock or SystemClock()
    app.state.metrics = Metrics()
    for router in ROUTERS:
        app.include_router(router)
    _add_probes(app)
    for kind in (
        *(DomainError, ContractError, RequestValidationError, HTTPException),
        *(SQLAlchemyError, OSError),
    ):
        app.add_exception_handler(kind, _answer_error)
    api_document.install(app)
    app.add_middleware(
        Edge, clock=app.state.clock, metrics=app.state.metrics, limit=_size_limit(settings)
    )
    return app


def _size_limit(settings: Settings) -> Callable[[str, str], int]:
    def limit(method: str, path: str) -> int:
        if method == "POST" and _UPLOAD.match(path):
            return settings.upload_limit_bytes
        if method == "PATCH" and _PART.match(path):
            return settings.upload_limit_bytes
        return settings.request_limit_bytes

    return limit


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, OSError):
        if error.errno not in problem.DISK:
            raise error
        log.error("disk refused", error=str(error), path=request.url.path)
    found = problem.describe(
        error, instance=request.url.path, correlation_id=request.state.correlation_id
    )
    if isinstance(error, SQLAlchemyError):
        log.error("database refused", error=type(error).__name__, path=request.url.path)
    user = getattr(request.state, "user", "")
    if user and request.method not in {"GET", "HEAD", "OPTIONS"}:
        await run_in_threadpool(_record_refusal, request, user, found)
    answer = problem.respond(found)
    # A 405 has to say what is allowed.
    answer.headers.update(getattr(error, "headers", None) or {})
    return answer


def _record_refusal(request: Request, user: str, found: problem.Problem) -> None:
    """Keep a known user's refused call in the audit; what it wanted was rolled back before."""
    state = request.app.state
    now_ms = state.clock.now_ms()
    try:
        with state.database.transaction() as session:
            audit.record(
                session,
                action=f"{request.method} refused",
                resource_type="path",
                resource_name=request.url.path,
                outcome="refused",
                user=user,
                correlation_id=found.correlation_id,
                detail={"problem": found.type, "status": found.status},
                now_ms=now_ms,
            )
    except (DomainError, SQLAlchemyError) as error:
        # The refusal itself must reach the caller, whatever the database does.
        log.error("refusal not in the audit", error=type(error).__name__)


def _add_probes(app: FastAPI) -> None:
    @app.get("/health", tags=["probes"], summary="Whether the process is alive")
    def health() -> dict[str, bool]:
        """Says nothing of what it depends on: a restart would not repair that."""
        return {"alive": True}

    @app.get(
        "/ready",
        tags=["probes"],
        summary="Whether the server can do its work",
        responses={503: {"description": "Not now.", "content": {"application/json": {}}}},
    )
    def ready() -> JSONResponse:
        """Database, broker, and whether the broker holds what the database says; 503 if not."""
        checks = {
            "database": app.state.database.is_ready(),
            "broker": app.state.publisher.ready and app.state.ingest.ready,
            "publisher": app.state.publisher.settled,
        }
        if app.state.standstill.restored is not None:
            checks["after_restore"] = False
            return JSONResponse({"ready": False, "checks": checks, "advice": marker.ADVICE}, 503)
        is_ready = all(checks.values())
        return JSONResponse({"ready": is_ready, "checks": checks}, 200 if is_ready else 503)

    @app.get(
        "/metrics",
        tags=["probes"],
        summary="Counters for Prometheus",
        response_class=PlainTextResponse,
    )
    def metrics() -> Response:
        """In Prometheus' text format."""
        return Response(
            app.state.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )
