"""The server as one application: which parts there are, how they are joined, in which order they
start and stop.

Everything that a part needs is handed to it here. What the parts decide is theirs; how the
application gets a socket is in :mod:`fleet_server.serving`.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from fleet_contract.enrolment import ANCHORS_PATH
from fleet_contract.errors import ContractError
from fleet_contract.topics import DeviceChannel
from fleet_server import api_document, data_folder, problem
from fleet_server.access import endpoints as access_endpoints
from fleet_server.access import service as access
from fleet_server.access.admission import Admission
from fleet_server.access.authentication import require_operator
from fleet_server.audit import endpoints as audit_endpoints
from fleet_server.audit import service as audit
from fleet_server.audit import verification
from fleet_server.audit.verification import Seal
from fleet_server.broker.listener import EmbeddedBroker
from fleet_server.broker.mosquitto import PrivateMosquitto
from fleet_server.broker.rules import (
    INGEST,
    PUBLISHER,
)
from fleet_server.clock import Clock, SystemClock
from fleet_server.database import Database
from fleet_server.devices import endpoints as devices_endpoints
from fleet_server.devices import identity_endpoints, recording, stopping, token_endpoints
from fleet_server.devices import service as devices
from fleet_server.devices.authentication import device_or_operator
from fleet_server.dispatch.connection import BrokerAddress, Certified
from fleet_server.dispatch.inbound import Handler
from fleet_server.dispatch.ingest import Ingest
from fleet_server.dispatch.publisher import Publisher
from fleet_server.edge import Edge
from fleet_server.errors import DomainError
from fleet_server.fleet_broker import as_devices_see, open_own_authority, start_broker
from fleet_server.gatekeeper import Gatekeeper
from fleet_server.instance import instance_of
from fleet_server.metrics import Metrics
from fleet_server.releases import endpoints as releases_endpoints
from fleet_server.releases import service as releases
from fleet_server.releases.staging import Staging
from fleet_server.releases.store import Store
from fleet_server.rollouts import endpoints as rollouts_endpoints
from fleet_server.rollouts.controller import Controller
from fleet_server.settings import Settings
from fleet_server.succession import Succession, adopt_keyset
from fleet_server.telemetry import endpoints as telemetry_endpoints
from fleet_server.telemetry import service as telemetry
from fleet_server.trust import ceremonies
from fleet_server.trust import endpoints as trust_endpoints
from fleet_server.trust.authority.authority import (
    Authority,
)
from fleet_server.trust.catalogue.opening import open_catalogue
from fleet_server.trust.catalogue.upkeep import Upkeep
from fleet_server.trust.keyring import Keyring, open_keyring

ROUTERS = (
    trust_endpoints.router,
    token_endpoints.making,
    token_endpoints.router,
    identity_endpoints.router,
    ceremonies.router,
    ceremonies.families,
    devices_endpoints.router,
    telemetry_endpoints.router,
    releases_endpoints.models,
    releases_endpoints.store_router(device_or_operator),
    rollouts_endpoints.router,
    access_endpoints.router,
    audit_endpoints.audit_router(require_operator),
)
BROKER_KINDS = {EmbeddedBroker: "embedded in this process", PrivateMosquitto: "a private Mosquitto"}
CHECKPOINT_EVERY_S = 600
RENEW_OWN_EVERY_S = 3_600
_UPLOAD = re.compile(r"^/v1/models/[^/]+/releases/?\Z")
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
        lifespan=_lifespan,
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
        SQLAlchemyError,
    ):
        app.add_exception_handler(kind, _answer_error)
    api_document.install(app)
    app.add_middleware(
        Edge, clock=app.state.clock, metrics=app.state.metrics, limit=_size_limit(settings)
    )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    clock: Clock = app.state.clock
    metrics: Metrics = app.state.metrics
    async with AsyncExitStack() as stack:
        stack.enter_context(data_folder.held(settings.data_dir))
        database = app.state.database = Database(
            settings.database, {audit.ENVIRONMENT: settings.environment}
        )
        stack.callback(database.close)
        app.state.admission = Admission(settings, database, clock)
        await run_in_threadpool(database.migrate)
        catalogue = app.state.catalogue = open_catalogue(
            settings.data_dir / "trust",
            # Devices may have been enrolled by whoever had those keys.
            may_make=not (settings.data_dir / "keys").exists(),
            random_bytes=clock.random_bytes,
            now_ms=clock.now_ms,
        )
        keyring = app.state.keyring = open_keyring(
            settings.data_dir / "keys", fleet=settings.fleet, random_bytes=clock.random_bytes
        )
        if catalogue.holds_root_key:
            log.warning("all keys lie on this disk: for trying out, not for production")
        upkeep = Upkeep(catalogue)
        await run_in_threadpool(upkeep.start)
        stack.push_async_callback(run_in_threadpool, upkeep.stop)
        await run_in_threadpool(adopt_keyset, catalogue, keyring)
        authority = app.state.authority = await run_in_threadpool(
            open_own_authority, settings, clock
        )
        await run_in_threadpool(catalogue.publish_document, ANCHORS_PATH, authority.anchors)
        await run_in_threadpool(_write_first_rows, database, keyring, settings, clock)
        seal = app.state.audit_seal = Seal(
            partial(keyring.sign_checkpoint, verification.PAYLOAD_TYPE), keyring.checkpoint_keys()
        )
        checkpoints = asyncio.create_task(_sign_audit(database, seal, settings, clock))
        stack.callback(checkpoints.cancel)
        staging = app.state.staging = Staging(
            settings.data_dir, database, Store(settings.data_dir / "store"), catalogue, clock
        )
        staging.start()
        stack.push_async_callback(run_in_threadpool, staging.stop)
        gatekeeper = app.state.gatekeeper = Gatekeeper(database, authority, clock, settings.fleet)
        await run_in_threadpool(gatekeeper.write_revocations)
        broker = await start_broker(settings, clock, authority, gatekeeper)
        stack.push_async_callback(broker.stop)
        gatekeeper.use(broker)
        app.state.expel = gatekeeper.expel
        renewal = asyncio.create_task(_renew_own(authority, gatekeeper))
        stack.callback(renewal.cancel)
        app.state.broker_url = broker.url
        app.state.device_broker_url = as_devices_see(broker.url, settings)
        app.state.broker_kind = BROKER_KINDS.get(type(broker), "run by somebody else")
        address = BrokerAddress.parse(broker.url)
        if not address.tls:
            log.warning("this broker does not know who publishes: for trying out", url=broker.url)
        publisher = app.state.publisher = Publisher(
            database,
            settings.fleet,
            address,
            clock,
            certified=Certified(PUBLISHER, partial(authority.client, PUBLISHER)),
        )
        app.state.wake_publisher = publisher.wake
        succession = Succession(database, catalogue, keyring, staging, clock, publisher.wake)
        catalogue.followed = succession
        await run_in_threadpool(succession.start)
        publisher.start()
        # Off the loop: the embedded broker needs the loop to take the farewell.
        stack.push_async_callback(run_in_threadpool, publisher.stop)
        ingest = app.state.ingest = Ingest(
            database,
            settings.fleet,
            address,
            clock,
            _handlers(),
            batch=settings.ingest_batch,
            wait_ms=settings.ingest_wait_ms,
            certified=Certified(INGEST, partial(authority.client, INGEST)),
        )
        ingest.start()
        stack.push_async_callback(run_in_threadpool, ingest.stop)
        controller = app.state.controller = Controller(
            database,
            keyring,
            publisher.wake,
            clock,
            interval_ms=settings.controller_interval_ms,
            holder=instance_of(settings.data_dir, random_bytes=clock.random_bytes),
        )
        controller.start()
        stack.push_async_callback(run_in_threadpool, controller.stop)
        metrics.add_source("publisher", publisher.counts)
        metrics.add_source("ingest", ingest.counts)
        metrics.add_source("controller", controller.counts)
        statistics = getattr(broker, "statistics", None)
        if statistics is not None:
            metrics.add_source("broker", statistics)
        log.info("started", url=settings.url, broker=broker.url, fleet=settings.fleet)
        yield
        log.info("stopping")


def _write_first_rows(
    database: Database, keyring: Keyring, settings: Settings, clock: Clock
) -> None:
    now_ms = clock.now_ms()
    with database.transaction() as session:
        access.ensure_admin_token(
            session, settings.data_dir, random_bytes=clock.random_bytes, now_ms=now_ms
        )
        devices.ensure_default_cohort(session, keyring.fleet)
        stopping.ensure_stop(session, keyring, now_ms=now_ms)


async def _sign_audit(database: Database, seal: Seal, settings: Settings, clock: Clock) -> None:
    """Sign where the audit's chain stands, now and then; the log is a witness of its own."""
    while True:
        try:
            await run_in_threadpool(_make_checkpoint, database, seal, settings, clock)
        except (DomainError, SQLAlchemyError) as error:
            log.error("audit not signed", error=type(error).__name__)
        await asyncio.sleep(CHECKPOINT_EVERY_S)


def _make_checkpoint(database: Database, seal: Seal, settings: Settings, clock: Clock) -> None:
    now_ms = clock.now_ms()
    with database.transaction() as session:
        made = verification.make_checkpoint(session, seal, fleet=settings.fleet, now_ms=now_ms)
    if made is not None and made.made_ms == now_ms:
        log.info("audit signed", sequence=made.sequence, envelope=made.envelope)


async def _renew_own(authority: Authority, gatekeeper: Gatekeeper) -> None:
    """Renew what the server itself shows, long before it expires."""
    while True:
        await asyncio.sleep(RENEW_OWN_EVERY_S)
        try:
            if await run_in_threadpool(authority.refresh):
                await run_in_threadpool(gatekeeper.reload)
        except OSError as error:
            log.error("the server's certificates are not renewed", error=str(error))


def _handlers() -> dict[DeviceChannel, Handler]:
    return {
        DeviceChannel.PRESENCE: recording.handle_presence,
        DeviceChannel.PROGRESS: recording.handle_progress,
        DeviceChannel.REPORT: partial(telemetry.record_reports, schema_of=releases.schema_of),
    }


def _size_limit(settings: Settings) -> Callable[[str, str], int]:
    def limit(method: str, path: str) -> int:
        if method == "POST" and _UPLOAD.match(path):
            return settings.upload_limit_bytes
        return settings.request_limit_bytes

    return limit


async def _answer_error(request: Request, error: Exception) -> Response:
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
