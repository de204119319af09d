"""What is wrong with this device, and what to do about it.

Each check looks at one thing that keeps an agent from working and says so in a sentence with an
advice. Nothing is changed.
"""

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from device_agent.errors import NotEnrolled, StepFailed
from device_agent.inference.capabilities import capabilities
from device_agent.shell.catalogue import FOLDER
from device_agent.shell.clock import Clock
from device_agent.shell.http_source import HttpFailure, HttpSource
from device_agent.shell.identity import FILE_NAME, DeviceIdentity, load_identity
from device_agent.shell.metadata_files import MetadataFiles
from device_agent.shell.metadata_refresh import MetadataRefresh
from device_agent.shell.mqtt import BrokerAddress
from device_agent.shell.store import RESERVE_BYTES, Store
from fleet_contract import limits

CLOCK_GAP_MS = 5 * 60_000
"""Directives live for longer; a clock that is further off will one day refuse them."""
_CONNECT_S = 5.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check; ``advice`` is empty where all is well."""

    subject: str
    well: bool
    detail: str
    advice: str = ""


def examine(store: Store, clock: Clock) -> Iterator[Finding]:
    """Yield the findings, one check after another."""
    yield _disk(store)
    yield _runtime()
    try:
        identity = load_identity(store)
    except NotEnrolled as error:
        yield Finding("identity", False, str(error), "run: device-agent enroll TOKEN --name NAME")
        return
    yield from (_identity(store, identity), _root(store), _record(store))
    yield from _server(store, identity, clock)
    yield _broker(identity)


def _disk(store: Store) -> Finding:
    free = shutil.disk_usage(store.folder).free
    if free < 2 * RESERVE_BYTES:
        return Finding(
            "disk",
            False,
            f"{free >> 20} MiB are free at {store.folder}",
            "free some space: new releases cannot be stored",
        )
    if not os.access(store.folder, os.W_OK):
        return Finding("disk", False, f"{store.folder} cannot be written", "check its owner")
    return Finding("disk", True, f"{free >> 20} MiB are free at {store.folder}")


def _runtime() -> Finding:
    found = capabilities()
    if not found.runtimes:
        return Finding(
            "runtime",
            False,
            "no runtime gives the right answer to a tiny model",
            "reinstall: pip install --force-reinstall 'edgefleet[agent]'",
        )
    names = ", ".join(f"{name} {version}" for name, version in found.runtimes.items())
    return Finding(
        "runtime", True, f"{names} on {found.machine}, {found.memory_bytes >> 20} MiB of memory"
    )


def _identity(store: Store, identity: DeviceIdentity) -> Finding:
    mode = stat.S_IMODE((store.folder / FILE_NAME).stat().st_mode)
    if mode & 0o077:
        return Finding(
            "identity",
            False,
            f"{FILE_NAME} holds a password and may be read by others",
            f"run: chmod 600 {store.folder / FILE_NAME}",
        )
    plain = [
        url
        for url in (identity.server, identity.broker)
        if urlsplit(url).scheme in ("http", "mqtt") and urlsplit(url).hostname not in _LOOPBACK
    ]
    if plain:
        return Finding(
            "identity",
            False,
            f"the password goes in the clear to {', '.join(plain)}",
            "let the server offer https and mqtts, and enrol anew",
        )
    return Finding("identity", True, f"{identity.device} of fleet {identity.fleet}")


def _root(store: Store) -> Finding:
    if MetadataFiles(store.folder / FOLDER).load("root") is None:
        return Finding("root", False, "the pinned root cannot be read", "enrol anew")
    return Finding("root", True, "the fleet's root is pinned")


def _record(store: Store) -> Finding:
    record = store.load_record()
    if record is None:
        return Finding(
            "record",
            False,
            "no readable record of what runs here",
            "start the agent: it begins anew and fetches what it needs",
        )
    return Finding("record", True, f"start {record.boot}, {len(record.models)} models")


class _Untouched(MetadataFiles):
    """The trusted metadata, read and left as it is."""

    def save(self, role: str, data: bytes) -> None:
        pass


def _server(store: Store, identity: DeviceIdentity, clock: Clock) -> Iterator[Finding]:
    source = HttpSource(f"{identity.server}/v1/trust/metadata", ticks_ns=clock.ticks_ns)
    try:
        with source.ask("GET", "timestamp.json", size_bytes=limits.TIMESTAMP_BYTES) as answer:
            date = answer.header("Date")
    except HttpFailure as error:
        yield Finding(
            "server",
            False,
            f"{identity.server} does not answer: {error}",
            "check that the server runs and that this address is right from here",
        )
        return
    try:
        MetadataRefresh(
            _Untouched(store.folder / FOLDER),
            source,
            now_ms=clock.now_ms(),
            ticks_ns=clock.ticks_ns,
        ).refresh()
        yield Finding("server", True, f"{identity.server} shows fresh metadata below our root")
    except StepFailed as failed:
        yield Finding(
            "server",
            False,
            f"{identity.server} shows no metadata that this device may believe ({failed})",
            "check this device's clock; if another server answers there, check the address",
        )
    yield _clock(date, clock.now_ms())


def _clock(date: str, now_ms: int) -> Finding:
    try:
        gap_ms = now_ms - int(parsedate_to_datetime(date).timestamp() * 1000)
    except ValueError:
        return Finding("clock", True, "the server does not say what time it is")
    if abs(gap_ms) > CLOCK_GAP_MS:
        return Finding(
            "clock",
            False,
            f"this device is {gap_ms // 1000} s off the server's time",
            "let it keep time: timedatectl set-ntp true",
        )
    return Finding("clock", True, "within five minutes of the server's")


def _broker(identity: DeviceIdentity) -> Finding:
    url = identity.broker
    try:
        address = BrokerAddress(url)
        socket.create_connection((address.host, address.port), _CONNECT_S).close()
    except (OSError, ValueError) as error:
        return Finding(
            "broker", False, f"{url} cannot be reached: {error}", "check the network and firewall"
        )
    return Finding("broker", True, f"{url} accepts connections")
