"""What an operator can set, from where, and within which bounds.

A setting comes from a command-line flag, else from its environment variable, else from its
default. docs/reference/settings.md lists them; a test fails when one is missing there.
"""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fleet_contract import names
from fleet_contract.errors import InvalidName
from fleet_server.errors import StartError
from fleet_server.locations import beginnings

PREFIX = "EDGEFLEET_"
ENVIRONMENTS = ("dev", "staging", "production")
LOG_LEVELS = ("debug", "info", "warning", "error")
_METADATA_FIELD = re.compile(r"^[A-Za-z][A-Za-z0-9_]{0,62}(\.[A-Za-z0-9][A-Za-z0-9 ._-]{0,62})?\Z")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _default_folder() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "edgefleet"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the server can be told; see docs/reference/settings.md.

    Raises:
        StartError: from the constructor, if a value is out of its bounds.
    """

    data_dir: Path = field(default_factory=_default_folder)
    host: str = "127.0.0.1"
    port: int = 8420
    public_url: str = ""
    device_listen: str = ""
    device_port: int = 8421
    device_url: str = ""
    device_certificate_hours: int = 168
    fleet: str = "home"
    environment: str = "dev"
    database_url: str = ""
    broker: str = "auto"
    broker_port: int = 0
    controller_interval_ms: int = 1_000
    delta_interval_ms: int = 10_000
    collect_interval_ms: int = 3_600_000
    collect_grace_ms: int = 86_400_000
    ingest_batch: int = 500
    ingest_wait_ms: int = 20
    request_limit_bytes: int = 1024 * 1024
    upload_limit_bytes: int = 2 * 1024**3
    roles_file: str = ""
    oidc_issuer: str = ""
    oidc_audience: str = ""
    oidc_role_claim: str = "roles"
    oidc_user_claim: str = "sub"
    provenance_policy: str = ""
    allowed_locations: str = "https:// s3:// gs://"
    required_metadata: str = ""
    object_store: str = ""
    log_level: str = "info"
    log_file: str = ""

    def __post_init__(self) -> None:
        try:
            names.check_identity(self.fleet, "fleet")
        except InvalidName as error:
            raise _refuse("fleet", str(error)) from error
        try:
            beginnings(self.allowed_locations)
        except ValueError as error:
            raise _refuse("allowed_locations", str(error)) from error
        if not all(_METADATA_FIELD.match(word) for word in self.required_metadata.split()):
            raise _refuse("required_metadata", "write names of fields, separated by spaces")
        if self.environment not in ENVIRONMENTS:
            raise _refuse("environment", f"use one of {', '.join(ENVIRONMENTS)}")
        if self.log_level not in LOG_LEVELS:
            raise _refuse("log_level", f"use one of {', '.join(LOG_LEVELS)}")
        for name, least, most in (
            ("port", 0, 65_535),
            ("device_port", 0, 65_535),
            ("broker_port", 0, 65_535),
            # A device that was off for longer renews first; a year is no short life any more.
            ("device_certificate_hours", 1, 8_760),
            ("controller_interval_ms", 10, 3_600_000),
            ("delta_interval_ms", 0, 86_400_000),
            ("collect_interval_ms", 0, 86_400_000),
            # A push, a backup and a device that was just told must all end within it.
            ("collect_grace_ms", 3_600_000, 7_776_000_000),
            # A batch must fit into the client's window of unacknowledged messages.
            ("ingest_batch", 1, 1_000),
            ("ingest_wait_ms", 0, 10_000),
            ("request_limit_bytes", 1_024, 64 * 1024**2),
            ("upload_limit_bytes", 1_024, 16 * 1024**3),
        ):
            if not least <= getattr(self, name) <= most:
                raise _refuse(name, f"use a number from {least} to {most}")
        if self.public_url and not self.public_url.startswith(("http://", "https://")):
            raise _refuse("public_url", "start it with http:// or https://")
        if self.device_url and not urlsplit(self.device_url).hostname:
            raise _refuse("device_url", "write https://HOST:PORT")
        if self.device_url and not self.device_url.startswith("https://"):
            raise _refuse("device_url", "devices are certified by TLS: start it with https://")

    @property
    def database(self) -> str:
        """The SQLAlchemy URL: the one that was set, or a SQLite file in the data folder."""
        return self.database_url or f"sqlite:///{self.data_dir / 'fleet.sqlite'}"

    @property
    def url(self) -> str:
        """Where people reach the HTTP server, without a closing slash."""
        if self.public_url:
            return self.public_url.rstrip("/")
        return f"http://{_in_url(self.host)}:{self.port}"

    @property
    def device_address(self) -> str:
        """Where devices are listened to, and where a broker that this server starts listens."""
        return self.device_listen or self.host

    @property
    def devices_url(self) -> str:
        """Where devices reach the HTTP server, without a closing slash."""
        if self.device_url:
            return self.device_url.rstrip("/")
        return f"https://{_in_url(self._reachable_host)}:{self.device_port}"

    @property
    def device_host(self) -> str:
        """Name or address under which devices reach this server."""
        host = urlsplit(self.devices_url).hostname
        assert host is not None
        return host

    @property
    def hosts(self) -> list[str]:
        """All names and addresses that the server's certificate has to hold for."""
        return list(dict.fromkeys([self.device_host, self._reachable_host, *LOOPBACK]))

    @property
    def _reachable_host(self) -> str:
        # Who listens on all addresses is reached by its name.
        address = self.device_address
        return socket.getfqdn() if address in ("0.0.0.0", "::") else address

    @property
    def on_loopback(self) -> bool:
        """Whether nobody but this machine can reach the server."""
        return self.host in LOOPBACK


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def read_settings(variables: Mapping[str, str], /, **flags: Any) -> Settings:
    """Return the settings from flags (None: not given) and environment variables.

    Raises:
        StartError: if a value cannot be read or is out of its bounds.
    """
    values: dict[str, Any] = {}
    for setting in fields(Settings):
        given = flags.pop(setting.name, None)
        if given is None:
            given = variables.get(PREFIX + setting.name.upper())
        if given is not None:
            values[setting.name] = _read(setting.name, setting.type, given)
    if flags:
        raise TypeError(f"no such setting: {', '.join(flags)}")
    return Settings(**values)


def _read(name: str, kind: Any, value: Any) -> Any:
    if kind is int:
        try:
            return int(value)
        except ValueError as error:
            raise _refuse(name, f"{str(value)[:80]!r} is not a number") from error
    if kind is Path:
        return Path(value).expanduser()
    return str(value)


def _refuse(name: str, why: str) -> StartError:
    flag = name.replace("_", "-")
    return StartError(
        "bad_setting",
        f"The setting {name} cannot be used: {why}.",
        f"Set it by --{flag} or {PREFIX}{name.upper()}; docs/reference/settings.md explains it.",
    )
