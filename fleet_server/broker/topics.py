"""Topic names and topic filters (section 4.7).

Decides which are valid and how a shared subscription's filter is taken apart. Leaves out
matching, which the trees of ``subscriptions`` and ``retained`` do.
"""

from __future__ import annotations

from fleet_server.broker.errors import PacketError
from fleet_server.broker.limits import Limits
from fleet_server.broker.reason_codes import ReasonCode


def check_topic_name(topic: str, limits: Limits) -> None:
    """Raises ``PacketError`` (Topic Name invalid)."""
    if not topic or "+" in topic or "#" in topic:  # 4.7.1, 4.7.3
        raise PacketError(ReasonCode.TOPIC_NAME_INVALID, "an empty topic name, or a wildcard in it")
    _check_size(topic, limits, ReasonCode.TOPIC_NAME_INVALID)


def check_topic_filter(topic_filter: str, limits: Limits) -> None:
    """Raises ``PacketError`` (Topic Filter invalid)."""
    reason = ReasonCode.TOPIC_FILTER_INVALID
    if not topic_filter:
        raise PacketError(reason, "an empty topic filter")
    _check_size(topic_filter, limits, reason)
    levels = topic_filter.split("/")
    for index, level in enumerate(levels):
        if "#" in level and (level != "#" or index != len(levels) - 1):  # 4.7.1.2
            raise PacketError(reason, "# stands alone and last")
        if "+" in level and level != "+":  # 4.7.1.3
            raise PacketError(reason, "+ fills a whole level")


def _check_size(text: str, limits: Limits, reason: ReasonCode) -> None:
    if len(text) * 4 > limits.max_topic_bytes and len(text.encode()) > limits.max_topic_bytes:
        raise PacketError(reason, f"more than {limits.max_topic_bytes} bytes")
    if text.count("/") >= limits.max_topic_levels:
        raise PacketError(reason, f"more than {limits.max_topic_levels} levels")


def split_shared(topic_filter: str) -> tuple[str | None, str]:
    """``$share/<name>/<filter>`` as (name, filter), any other filter as (None, itself) (4.8.2).

    Raises ``PacketError`` (Topic Filter invalid).
    """
    if not topic_filter.startswith("$share/"):
        return None, topic_filter
    _, name, *rest = topic_filter.split("/", 2)
    if not name or "+" in name or "#" in name or not rest:
        raise PacketError(ReasonCode.TOPIC_FILTER_INVALID, "a share without a plain name")
    return name, rest[0]
