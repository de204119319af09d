"""The MQTT topics of a fleet: how they are written and read.

Control topics are retained and carry signed documents; device topics carry what one device says
or is told. Names are checked on the way in and out.
"""

from enum import StrEnum
from typing import NamedTuple

from fleet_contract.errors import InvalidName
from fleet_contract.names import check_identity, check_model

PREFIX = "fleet/v1"


class DeviceChannel(StrEnum):
    """The last level, or last but one, of a device's topics."""

    ASSIGNMENT = "assignment"
    ACK = "ack"
    PRESENCE = "presence"
    PROGRESS = "progress"
    REPORT = "report"


class DeviceTopic(NamedTuple):
    """A device topic, taken apart; ``model`` is empty except for reports."""

    fleet: str
    device: str
    channel: DeviceChannel
    model: str


def stop(fleet: str) -> str:
    """Retained emergency stop of the whole fleet."""
    return f"{PREFIX}/{check_identity(fleet, 'fleet')}/stop"


def root(fleet: str) -> str:
    """Retained newest root of trust, which authenticates itself."""
    return f"{PREFIX}/{check_identity(fleet, 'fleet')}/root"


def directive(fleet: str, cohort: str, model: str) -> str:
    """Retained directive of one model in one cohort."""
    names = f"{check_identity(fleet, 'fleet')}/cohort/{check_identity(cohort, 'cohort')}"
    return f"{PREFIX}/{names}/{check_model(model)}"


def directives(fleet: str, cohort: str) -> str:
    """Filter for every directive of a cohort."""
    return f"{PREFIX}/{check_identity(fleet, 'fleet')}/cohort/{check_identity(cohort, 'cohort')}/+"


def device(fleet: str, name: str, channel: DeviceChannel) -> str:
    """A topic of one device, except its reports."""
    names = f"{check_identity(fleet, 'fleet')}/device/{check_identity(name, 'device')}"
    return f"{PREFIX}/{names}/{channel.value}"


def report(fleet: str, name: str, model: str) -> str:
    """Telemetry of one model on one device."""
    return f"{device(fleet, name, DeviceChannel.REPORT)}/{check_model(model)}"


def device_filter(fleet: str, channel: DeviceChannel) -> str:
    """Filter for one channel of every device."""
    tail = "/+" if channel is DeviceChannel.REPORT else ""
    return f"{PREFIX}/{check_identity(fleet, 'fleet')}/device/+/{channel.value}{tail}"


def control_filters(fleet: str) -> tuple[str, ...]:
    """Filters that together match every retained control topic of a fleet."""
    base = f"{PREFIX}/{check_identity(fleet, 'fleet')}"
    return (f"{base}/stop", f"{base}/root", f"{base}/cohort/+/+", f"{base}/device/+/assignment")


def read_directive(topic: str) -> tuple[str, str, str]:
    """Return (fleet, cohort, model) of a directive's topic.

    Raises:
        InvalidName: if it is not one.
    """
    parts = topic.split("/")
    if len(parts) != 6 or parts[0:2] != ["fleet", "v1"] or parts[3] != "cohort":
        raise InvalidName(f"not a directive's topic: {topic[:200]!r}")
    return (
        check_identity(parts[2], "fleet"),
        check_identity(parts[4], "cohort"),
        check_model(parts[5]),
    )


def read_device(topic: str) -> DeviceTopic:
    """Take a device topic apart.

    Raises:
        InvalidName: if it is not one.
    """
    parts = topic.split("/")
    if len(parts) < 6 or parts[0:2] != ["fleet", "v1"] or parts[3] != "device":
        raise InvalidName(f"not a device's topic: {topic[:200]!r}")
    try:
        channel = DeviceChannel(parts[5])
    except ValueError as error:
        raise InvalidName(f"no such device channel: {topic[:200]!r}") from error
    if len(parts) != (7 if channel is DeviceChannel.REPORT else 6):
        raise InvalidName(f"not a device's topic: {topic[:200]!r}")
    model = check_model(parts[6]) if channel is DeviceChannel.REPORT else ""
    return DeviceTopic(
        check_identity(parts[2], "fleet"), check_identity(parts[4], "device"), channel, model
    )
