"""The parts of a running server: how they are joined, in which order they start and stop.

Everything that a part needs is handed to it here; what the parts decide is theirs. They are put
into ``app.state``, where requests find them. Trust comes first, and what decides comes last.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from fleet_contract.enrolment import ANCHORS_PATH
from fleet_contract.topics import DeviceChannel
from fleet_server import data_folder
from fleet_server.access import service as access
from fleet_server.access.admission import Admission
from fleet_server.audit import service as audit
from fleet_server.audit import verification
from fleet_server.audit.verification import Seal
from fleet_server.backup import marker
from fleet_server.backup.marker import Standstill
from fleet_server.benches.desk import Desk
from fleet_server.benches.stopwatch import BenchStopwatch
from fleet_server.broker.choice import Broker
from fleet_server.broker.listener import EmbeddedBroker
from fleet_server.broker.mosquitto import PrivateMosquitto
from fleet_server.broker.rules import (
    INGEST,
    PUBLISHER,
)
from fleet_server.clock import Clock
from fleet_server.collection.collector import Collector
from fleet_server.database import Database
from fleet_server.deltas.making import DeltaMaker
from fleet_server.devices import recording, stopping
from fleet_server.devices import service as devices
from fleet_server.dispatch.connection import BrokerAddress, Certified
from fleet_server.dispatch.inbound import Handler
from fleet_server.dispatch.ingest import Ingest
from fleet_server.dispatch.publisher import Publisher
from fleet_server.errors import DomainError
from fleet_server.fleet_broker import as_devices_see, open_own_authority, start_broker
from fleet_server.gatekeeper import Gatekeeper
from fleet_server.instance import instance_of
from fleet_server.metrics import Metrics
from fleet_server.object_store import open_object_store
from fleet_server.provenance.policy import load_policy
from fleet_server.provenance.statement import Attester
from fleet_server.releases import service as releases
from fleet_server.releases.laboratory.laboratory import Laboratory
from fleet_server.releases.mirroring import Mirroring
from fleet_server.releases.resumable import ResumableUploads
from fleet_server.releases.staging import Staging
from fleet_server.releases.store import Store
from fleet_server.rollouts.controller import Controller
from fleet_server.settings import Settings
from fleet_server.succession import Succession, adopt_keyset
from fleet_server.telemetry import service as telemetry
from fleet_server.trust.authority.authority import (
    Authority,
)
from fleet_server.trust.catalogue.opening import open_catalogue
from fleet_server.trust.catalogue.repository import Catalogue
from fleet_server.trust.catalogue.upkeep import Upkeep
from fleet_server.trust.keyring import Keyring, open_keyring

BROKER_KINDS = {EmbeddedBroker: "embedded in this process", PrivateMosquitto: "a private Mosquitto"}
CHECKPOINT_EVERY_S = 600
RENEW_OWN_EVERY_S = 3_600

log = structlog.get_logger(__name__)


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[None]:
    """Run the parts of this application for as long as the block runs.

    Raises:
        StartError: where an operator has to do something before it can start.
    """
    settings: Settings = app.state.settings
    async with AsyncExitStack() as stack:
        stack.enter_context(data_folder.held(settings.data_dir))
        await _open_trust(app, stack)
        broker = await _open_broker(app, stack)
        await _start_parts(app, stack, BrokerAddress.parse(broker.url))
        statistics = getattr(broker, "statistics", None)
        if statistics is not None:
            app.state.metrics.add_source("broker", statistics)
        log.info("started", url=settings.url, broker=broker.url, fleet=settings.fleet)
        yield
        log.info("stopping")


async def _open_trust(app: FastAPI, stack: AsyncExitStack) -> None:
    """Open the database, the keys, the repository of what exists, and what signs and stages."""
    settings: Settings = app.state.settings
    clock: Clock = app.state.clock
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
    app.state.authority = await run_in_threadpool(_open_authority, settings, clock, catalogue)
    await run_in_threadpool(_write_first_rows, database, keyring, settings, clock)
    seal = app.state.audit_seal = Seal(
        partial(keyring.sign_checkpoint, verification.PAYLOAD_TYPE), keyring.checkpoint_keys
    )
    checkpoints = asyncio.create_task(_sign_audit(database, seal, settings, clock))
    stack.callback(checkpoints.cancel)
    app.state.provenance_policy = load_policy(settings.provenance_policy)
    app.state.uploads = ResumableUploads(
        settings.data_dir / "uploads", most_bytes=settings.upload_limit_bytes
    )
    objects = open_object_store(settings.object_store)
    laboratory = Laboratory()
    stack.push_async_callback(run_in_threadpool, laboratory.close)
    desk = app.state.desk = Desk()
    staging = app.state.staging = Staging(
        settings.data_dir,
        database,
        Store(settings.data_dir / "store", objects),
        catalogue,
        Attester(keyring.fleet, keyring.sign_checkpoint),
        clock,
        laboratory,
        settings.required_metadata.split(),
        BenchStopwatch(settings.data_dir / "bench", settings.fleet, database, keyring, clock, desk),
    )
    staging.start()
    stack.push_async_callback(run_in_threadpool, staging.stop)
    stack.callback(desk.close)
    deltas = app.state.deltas = DeltaMaker(
        settings.data_dir,
        database,
        staging.store,
        clock,
        fleet=settings.fleet,
        interval_ms=settings.delta_interval_ms,
        objects=objects,
    )
    deltas.start()
    stack.push_async_callback(run_in_threadpool, deltas.stop)
    mirroring = Mirroring([staging.store, deltas.patches])
    mirroring.start()
    stack.push_async_callback(run_in_threadpool, mirroring.stop)
    app.state.metrics.add_source("deltas", deltas.counts)
    collector = app.state.collector = Collector(
        settings.data_dir,
        database,
        staging,
        deltas.patches,
        app.state.uploads,
        catalogue,
        clock,
        fleet=settings.fleet,
        interval_ms=settings.collect_interval_ms,
        grace_ms=settings.collect_grace_ms,
    )
    stack.push_async_callback(run_in_threadpool, collector.stop)


async def _open_broker(app: FastAPI, stack: AsyncExitStack) -> Broker:
    """Start the broker, and who decides whom it lets in."""
    settings: Settings = app.state.settings
    authority: Authority = app.state.authority
    gatekeeper = app.state.gatekeeper = Gatekeeper(
        app.state.database, authority, app.state.clock, settings.fleet
    )
    await run_in_threadpool(gatekeeper.write_revocations)
    broker = await start_broker(settings, app.state.clock, authority, gatekeeper)
    stack.push_async_callback(broker.stop)
    gatekeeper.use(broker)
    stack.callback(gatekeeper.close)
    app.state.expel = gatekeeper.expel
    app.state.reload_broker = gatekeeper.reload
    renewal = asyncio.create_task(_renew_own(authority, gatekeeper))
    stack.callback(renewal.cancel)
    app.state.broker_url = broker.url
    app.state.device_broker_url = as_devices_see(broker.url, settings)
    app.state.broker_kind = BROKER_KINDS.get(type(broker), "run by somebody else")
    return broker


async def _start_parts(app: FastAPI, stack: AsyncExitStack, address: BrokerAddress) -> None:
    """Start what publishes, what listens and what decides; a restored server only listens."""
    settings: Settings = app.state.settings
    clock: Clock = app.state.clock
    metrics: Metrics = app.state.metrics
    database: Database = app.state.database
    keyring: Keyring = app.state.keyring
    authority: Authority = app.state.authority
    catalogue: Catalogue = app.state.catalogue
    if not address.tls:
        log.warning("this broker does not know who publishes: for trying out", port=address.port)
    publisher = app.state.publisher = Publisher(
        database,
        settings.fleet,
        address,
        clock,
        certified=Certified(PUBLISHER, partial(authority.client, PUBLISHER)),
    )
    app.state.wake_publisher = publisher.wake
    succession = Succession(
        database,
        catalogue,
        keyring,
        app.state.staging,
        clock,
        publisher.wake,
        app.state.audit_seal,
    )
    catalogue.followed = succession
    await run_in_threadpool(succession.start)
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
    stack.push_async_callback(run_in_threadpool, controller.stop)

    def lead() -> None:
        publisher.start()
        controller.start()
        # Restored from a backup, the database may not know what devices run.
        app.state.collector.start()

    standstill = app.state.standstill = Standstill(settings.data_dir, lead)
    if standstill.restored is not None:
        log.warning("restored from a backup: nothing is published yet", advice=marker.ADVICE)
    metrics.add_source("publisher", publisher.counts)
    metrics.add_source("ingest", ingest.counts)
    metrics.add_source("controller", controller.counts)


def _open_authority(settings: Settings, clock: Clock, catalogue: Catalogue) -> Authority:
    authority = open_own_authority(settings, clock)
    if not catalogue.publish_document(ANCHORS_PATH, authority.anchors):
        log.warning("the anchors wait for the signature of targets: edgefleet trust sign")
    return authority


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
