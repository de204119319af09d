"""Who subscribed to what: a tree of topic levels (section 4.7) with shared groups (4.8.2).

Decides which subscriptions a topic name matches, in one walk whose cost depends on the topic's
levels and not on the number of subscribers. Leaves out what is then sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fleet_server.broker.sessions import Session, Subscription
from fleet_server.broker.topics import split_shared

Subscribers = dict[Session, Subscription]


@dataclass(slots=True, eq=False)
class _Level:
    children: dict[str, _Level] = field(default_factory=dict)
    subscribers: Subscribers = field(default_factory=dict)
    groups: dict[str, Subscribers] = field(default_factory=dict)

    def is_empty(self) -> bool:
        return not (self.children or self.subscribers or self.groups)


class SubscriptionTree:
    """Filters must be valid (``topics.check_topic_filter``)."""

    def __init__(self) -> None:
        self._root = _Level()
        self.count = 0

    def add(self, session: Session, subscription: Subscription) -> bool:
        """Adds or replaces; True where the session did not have this filter before (3.8.4)."""
        group, topic_filter = split_shared(subscription.topic_filter)
        level = self._root
        for name in topic_filter.split("/"):
            child = level.children.get(name)
            if child is None:
                child = level.children[name] = _Level()
            level = child
        members = level.subscribers if group is None else level.groups.setdefault(group, {})
        is_new = session not in members
        members[session] = subscription
        self.count += is_new
        return is_new

    def remove(self, session: Session, topic_filter: str) -> bool:
        """False where there was nothing to remove."""
        group, plain_filter = split_shared(topic_filter)
        path: list[tuple[_Level, str]] = []
        level = self._root
        for name in plain_filter.split("/"):
            child = level.children.get(name)
            if child is None:
                return False
            path.append((level, name))
            level = child
        members = level.subscribers if group is None else level.groups.get(group, {})
        if members.pop(session, None) is None:
            return False
        self.count -= 1
        if group is not None and not members:
            del level.groups[group]
        for parent, name in reversed(path):
            if not parent.children[name].is_empty():
                break
            del parent.children[name]
        return True

    def match(self, topic: str) -> Iterable[tuple[Session, Subscription]]:
        """Each receiver of ``topic`` once.

        A session with overlapping subscriptions appears with the highest of their QoS and all
        of their identifiers (3.3.4). Of each shared group one member appears, in turns.
        """
        levels = self._matching_levels(topic)
        if len(levels) == 1 and not levels[0].groups:
            return levels[0].subscribers.items()  # nothing to merge: the broadcast
        merged: dict[Session, Subscription] = {}
        for level in levels:
            for session, subscription in level.subscribers.items():
                other = merged.get(session)
                merged[session] = subscription if other is None else _merge(other, subscription)
        receivers = list(merged.items())
        # 4.8.2: a shared subscription is one of its own, and a message for both goes out twice.
        for level in levels:
            receivers.extend(_take_turn(members) for members in level.groups.values())
        return receivers

    def _matching_levels(self, topic: str) -> list[_Level]:
        names = topic.split("/")
        found: list[_Level] = []
        reached = [self._root]
        for depth, name in enumerate(names):
            # 4.7.2: a wildcard does not match a first level that begins with $.
            wildcards = depth > 0 or not name.startswith("$")
            following = []
            for level in reached:
                children = level.children
                child = children.get(name)
                if child is not None:
                    following.append(child)
                if wildcards:
                    child = children.get("+")
                    if child is not None:
                        following.append(child)
                    child = children.get("#")
                    if child is not None:
                        found.append(child)
            if not following:
                return found
            reached = following
        for level in reached:
            if level.subscribers or level.groups:
                found.append(level)
            child = level.children.get("#")  # 4.7.1.2: it also matches the parent level
            if child is not None:
                found.append(child)
        return found


def _take_turn(members: Subscribers) -> tuple[Session, Subscription]:
    """The member that waited longest, which then goes to the back of the row."""
    session = next(iter(members))
    subscription = members.pop(session)
    members[session] = subscription
    return session, subscription


def _merge(one: Subscription, other: Subscription) -> Subscription:
    return Subscription(
        topic_filter=one.topic_filter,
        qos=max(one.qos, other.qos),
        # A message is held back as local only where every matching subscription asks for it.
        no_local=one.no_local and other.no_local,
        retain_as_published=one.retain_as_published or other.retain_as_published,
        identifiers=one.identifiers + other.identifiers,
    )
