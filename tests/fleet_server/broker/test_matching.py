"""Subscriptions and retained messages against a model that is too simple to be wrong."""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fleet_server.broker.core import BrokerCore
from fleet_server.broker.outputs import Deliver, Output
from fleet_server.broker.packets import (
    Connect,
    Publish,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
)

LEVEL = st.sampled_from(["a", "b", "", "$x"])
TOPICS = st.lists(LEVEL, min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = st.one_of(
    st.lists(st.sampled_from(["a", "b", "", "$x", "+"]), min_size=1, max_size=4),
    st.lists(st.sampled_from(["a", "b", "", "$x", "+"]), max_size=3).map(
        lambda levels: [*levels, "#"]
    ),
).map("/".join).filter(bool)  # fmt: skip
CLIENTS = st.integers(1, 3)


def matches(topic_filter: str, topic: str) -> bool:
    """Section 4.7, level by level."""
    if topic.startswith("$") and topic_filter[0] in "+#":
        return False
    names, wanted = topic.split("/"), topic_filter.split("/")
    if wanted[-1] == "#":
        wanted.pop()
        names = names[: len(wanted)]
    return len(wanted) == len(names) and all(
        want in ("+", name) for want, name in zip(wanted, names, strict=True)
    )


class Matching(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.core = BrokerCore()
        self.subscriptions: dict[int, set[str]] = {}
        self.retained: dict[str, bytes] = {}
        self.last_payload = 0
        self.connected: dict[int, int] = {}  # client -> connection
        self.last_connection = 0

    def deliveries(self, outputs: list[Output]) -> Counter[tuple[int, str, bytes]]:
        return Counter(
            (output.connection, output.frame.publish.topic, output.frame.publish.payload)
            for output in outputs
            if isinstance(output, Deliver)
        )

    @rule(client=CLIENTS)
    def connect(self, client: int) -> None:
        """Also a takeover: the older connection's subscriptions are gone."""
        self.last_connection += 1
        self.core.opened(self.last_connection, 0)
        self.core.received(self.last_connection, Connect(client_id=f"c{client}"), 0)
        self.subscriptions.pop(self.connected.get(client, 0), None)
        self.connected[client] = self.last_connection
        self.subscriptions[self.last_connection] = set()

    @precondition(lambda self: self.connected)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(sorted(self.connected)))
        connection = self.connected.pop(client)
        self.core.lost(connection, 0)
        del self.subscriptions[connection]

    @precondition(lambda self: self.connected)
    @rule(data=st.data(), topic_filter=FILTERS)
    def subscribe(self, data: st.DataObject, topic_filter: str) -> None:
        connection = data.draw(st.sampled_from(sorted(self.subscriptions)))
        request = SubscriptionRequest(topic_filter, 0)
        outputs = self.core.received(connection, Subscribe(1, (request,)), 0)
        self.subscriptions[connection].add(topic_filter)
        assert self.deliveries(outputs) == Counter(
            (connection, topic, payload)
            for topic, payload in self.retained.items()
            if matches(topic_filter, topic)
        )

    @precondition(lambda self: any(self.subscriptions.values()))
    @rule(data=st.data())
    def unsubscribe(self, data: st.DataObject) -> None:
        choices = [(c, f) for c, filters in self.subscriptions.items() for f in sorted(filters)]
        connection, topic_filter = data.draw(st.sampled_from(choices))
        self.core.received(connection, Unsubscribe(1, (topic_filter,)), 0)
        self.subscriptions[connection].remove(topic_filter)

    @precondition(lambda self: self.connected)
    @rule(data=st.data(), topic=TOPICS, retain=st.booleans(), empty=st.booleans())
    def publish(self, data: st.DataObject, topic: str, retain: bool, empty: bool) -> None:
        self.last_payload += 1
        payload = b"" if empty else b"%d" % self.last_payload
        connection = data.draw(st.sampled_from(sorted(self.subscriptions)))
        outputs = self.core.received(connection, Publish(topic, payload, retain=retain), 0)
        if retain:
            self.retained[topic] = payload
            if empty:
                del self.retained[topic]
        assert self.deliveries(outputs) == Counter(
            (receiver, topic, payload)
            for receiver, filters in self.subscriptions.items()
            if any(matches(topic_filter, topic) for topic_filter in filters)
        )

    @invariant()
    def counts_agree(self) -> None:
        assert self.core.connections == len(self.connected)
        assert self.core.subscriptions == sum(map(len, self.subscriptions.values()))
        assert self.core.retained_messages == len(self.retained)
        assert self.core.retained_bytes == sum(
            len(topic) + len(payload) for topic, payload in self.retained.items()
        )


TestMatching = Matching.TestCase
