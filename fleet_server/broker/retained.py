"""Retained messages (section 3.3.1.3): the last message of each topic, for who comes later.

Decides what is stored, replaced and cleared, within two bounds, and which messages a topic
filter finds. Leaves out retain handling and delivery.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fleet_server.broker.limits import Limits
from fleet_server.broker.messages import Message


@dataclass(slots=True, eq=False)
class _Level:
    children: dict[str, _Level] = field(default_factory=dict)
    message: Message | None = None


class RetainedMessages:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._root = _Level()
        self._by_topic: dict[str, Message] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._by_topic)

    def store(self, message: Message, now_ms: int) -> bool:
        """Replaces the topic's message, or clears it by an empty payload (3.3.1.3).

        False, with nothing changed, where a bound of ``Limits`` forbids it.
        """
        if not message.payload:
            self.clear(message.topic)
            return True
        if not self._has_room(message):
            self._discard_expired(now_ms)
            if not self._has_room(message):
                return False
        self.clear(message.topic)
        level = self._root
        for name in message.topic.split("/"):
            child = level.children.get(name)
            if child is None:
                child = level.children[name] = _Level()
            level = child
        level.message = self._by_topic[message.topic] = message
        self.size_bytes += _size_bytes(message)
        return True

    def find(self, topic_filter: str, now_ms: int) -> list[Message]:
        """All messages that the filter matches and that have not expired (4.7)."""
        if "+" not in topic_filter and "#" not in topic_filter:
            message = self._by_topic.get(topic_filter)
            found = [] if message is None else [message]
        else:
            found = self._walk(topic_filter.split("/"))
        return [message for message in found if not message.expired(now_ms)]

    def _walk(self, names: list[str]) -> list[Message]:
        found: list[Message] = []
        reached = [(self._root, 0)]
        while reached:
            level, depth = reached.pop()
            if depth == len(names):
                if level.message is not None:
                    found.append(level.message)
                continue
            name = names[depth]
            if name not in ("+", "#"):
                if name in level.children:
                    reached.append((level.children[name], depth + 1))
                continue
            if name == "#" and level.message is not None:
                found.append(level.message)  # 4.7.1.2: # includes the parent level
            following = depth if name == "#" else depth + 1
            reached.extend(
                (child, following)
                for child_name, child in level.children.items()
                # 4.7.2: no wildcard at the first level finds what begins with $.
                if level is not self._root or not child_name.startswith("$")
            )
        return found

    def _has_room(self, message: Message) -> bool:
        replaced = self._by_topic.get(message.topic)
        size_bytes = self.size_bytes + _size_bytes(message)
        if replaced is not None:
            size_bytes -= _size_bytes(replaced)
        elif len(self._by_topic) >= self._limits.max_retained_messages:
            return False
        return size_bytes <= self._limits.max_retained_bytes

    def _discard_expired(self, now_ms: int) -> None:
        for topic in [t for t, message in self._by_topic.items() if message.expired(now_ms)]:
            self.clear(topic)

    def clear(self, topic: str) -> None:
        """Forgets the message of a topic, if there is one."""
        message = self._by_topic.pop(topic, None)
        if message is None:
            return
        self.size_bytes -= _size_bytes(message)
        path: list[tuple[_Level, str]] = []
        level = self._root
        for name in topic.split("/"):
            path.append((level, name))
            level = level.children[name]
        level.message = None
        for parent, name in reversed(path):
            child = parent.children[name]
            if child.children or child.message is not None:
                break
            del parent.children[name]


def _size_bytes(message: Message) -> int:
    return len(message.topic) + len(message.payload)
