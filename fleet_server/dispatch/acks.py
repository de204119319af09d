"""Merges what the handlers committed into few acknowledgements for each device.

Decides that a device hears of a window once, with the highest sequence, and that no message grows
beyond what devices read.
"""

from collections.abc import Iterable, Iterator

from fleet_contract.messages.report import Ack, WindowAck
from fleet_server.dispatch.inbound import DeviceAck

WINDOWS_PER_ACK = 256
"""A window takes at most 200 bytes of the 64 KiB that a device reads."""


def merge_acks(acks: Iterable[DeviceAck]) -> Iterator[tuple[str, Ack]]:
    """Yield (device, acknowledgement), one a boot session or more if it has very many windows."""
    progress: dict[tuple[str, str], int] = {}
    windows: dict[tuple[str, str], dict[tuple[str, str, str, int], WindowAck]] = {}
    for ack in acks:
        session = (ack.device, ack.session)
        progress[session] = max(progress.get(session, -1), ack.progress)
        merged = windows.setdefault(session, {})
        for window in ack.windows:
            key = (window.model, window.release, window.role.value, window.start_ms)
            known = merged.get(key)
            if known is None or known.sequence < window.sequence:
                merged[key] = window
    for (device, boot), merged in windows.items():
        listed = list(merged.values())
        for start in range(0, max(1, len(listed)), WINDOWS_PER_ACK):
            part = listed[start : start + WINDOWS_PER_ACK]
            yield device, Ack(boot, progress[device, boot], part)
