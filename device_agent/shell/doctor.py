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

from device_agent.errors import IdentityUnusable, NotEnrolled, StepFailed
from device_agent.inference.capabilities import capabilities
from device_agent.shell.catalogue import FOLDER
from device_agent.shell.certificate import PAIR_FILE
from device_agent.shell.clock import Clock
from device_agent.shell.http_source import HttpFailure, HttpSource
from device_agent.shell.identity import DeviceIdentity, load_identity
from device_agent.shell.metadata_files import MetadataFiles
from device_agent.shell.metadata_refresh import MetadataRefresh
from device_agent.shell.mqtt import BrokerAddress
from device_agent.shell.store import RESERVE_BYTES, Store
from device_agent.shell.tls import Tls, Trouble, trouble_of
from fleet_contract import limits

CLOCK_GAP_MS = 5 * 60_000
"""Directives live for longer; a clock that is further off will one day refuse them."""
_CONNECT_S = 5.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_ADVICE: dict[Trouble | None, str] = {
    Trouble.UNVOUCHED: "check this device's clock; if it is right, start the agent: it asks for "
    "new anchors",
    Trouble.REFUSED: "start the agent: it renews the certificate; a retired device needs a new "
    "token",
}


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
    record = store.load_record()
    floor_ms = record.time_floor_ms if record is not None else 0
    tls = Tls(store.folder, identity.device, now_ms=clock.now_ms, time_floor_ms=lambda: floor_ms)
    yield from (_identity(identity), _key(store, tls, max(clock.now_ms(), floor_ms)))
    if _secure(identity):
        yield _anchors(tls)
    yield from (_root(store), _record(store))
    yield from _server(store, identity, clock, tls)
    yield _broker(identity, tls)


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


def _secure(identity: DeviceIdentity) -> bool:
    return any(url.startswith(("https:", "mqtts:")) for url in (identity.server, identity.broker))


def _identity(identity: DeviceIdentity) -> Finding:
    plain = [
        url
        for url in (identity.server, identity.broker)
        if urlsplit(url).scheme in ("http", "mqtt") and urlsplit(url).hostname not in _LOOPBACK
    ]
    if plain:
        return Finding(
            "identity",
            False,
            f"nobody proves who he is on the way to {', '.join(plain)}",
            "let the server offer https and mqtts, and enrol anew",
        )
    return Finding("identity", True, f"{identity.device} of fleet {identity.fleet}")


def _key(store: Store, tls: Tls, now_ms: int) -> Finding:
    path = store.folder / PAIR_FILE
    try:
        held = tls.certificate()
    except IdentityUnusable as error:
        return Finding(
            "key", False, str(error), "until then the models answer, and the device is offline"
        )
    if stat.S_IMODE(path.lstat().st_mode) & 0o077:
        return Finding("key", False, f"{path} may be read by others", f"run: chmod 600 {path}")
    left_hours = (held.not_after_ms - now_ms) // 3_600_000
    if left_hours < 0:
        return Finding(
            "key",
            False,
            f"the certificate expired {-left_hours} hours ago",
            "start the agent where it reaches the server: an expired certificate may be renewed",
        )
    left = f"{left_hours // 24} days and {left_hours % 24} hours"
    return Finding("key", True, f"the certificate is for this device's key, {left} are left")


def _anchors(tls: Tls) -> Finding:
    try:
        tls.context()
    except IdentityUnusable as error:
        return Finding("anchors", False, str(error), "see to the key first, then start the agent")
    return Finding("anchors", True, "the fleet's certificates for server and broker are here")


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


def _server(store: Store, identity: DeviceIdentity, clock: Clock, tls: Tls) -> Iterator[Finding]:
    source = HttpSource(
        f"{identity.server}/v1/trust/metadata", ticks_ns=clock.ticks_ns, tls=tls.context
    )
    try:
        with source.ask("GET", "timestamp.json", size_bytes=limits.TIMESTAMP_BYTES) as answer:
            date = answer.header("Date")
    except HttpFailure as error:
        yield Finding(
            "server",
            False,
            f"{identity.server} does not answer: {error}",
            _ADVICE.get(
                error.trouble,
                "check that the server runs and that this address is right from here",
            ),
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


def _broker(identity: DeviceIdentity, tls: Tls) -> Finding:
    url = identity.broker
    try:
        address = BrokerAddress(url)
        with socket.create_connection((address.host, address.port), _CONNECT_S) as line:
            if address.secure:
                with tls.context().wrap_socket(line, server_hostname=address.host):
                    return Finding("broker", True, f"{url} proves who it is")
    except (OSError, ValueError, IdentityUnusable) as error:
        return Finding(
            "broker",
            False,
            f"{url} cannot be reached: {error}",
            _ADVICE.get(trouble_of(error), "check the network and firewall"),
        )
    return Finding("broker", True, f"{url} accepts connections")
