"""Guards that the broker ends up with the rows after any interleaving, and that repair ends."""

from __future__ import annotations

import itertools
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from fleet_server.dispatch import agreement
from fleet_server.dispatch.agreement import Agreement, Publication

TOPICS = ["fleet/v1/home/stop", "fleet/v1/home/cohort/a1/m1", "fleet/v1/home/device/d1/assignment"]
STRANGE = "fleet/v1/home/device/d9/assignment"


class World:
    """A broker, its wire to the publisher, and the rows, in virtual time."""

    def __init__(self) -> None:
        self.agreement = Agreement()
        self.rows: dict[str, bytes] = {}
        self.retained: dict[str, bytes] = {}
        self.to_publisher: deque[Publication | None] = deque()
        self.connected = False
        self.now_ms = 0
        self.version = 0

    def commit(self, topic: str) -> None:
        self.version += 1
        self.rows[topic] = b"row %d" % self.version

    def wake(self) -> None:
        self.agreement.want(dict(self.rows), complete=False)

    def poll(self) -> None:
        self.agreement.want(dict(self.rows), complete=True)

    def write(self, topic: str, payload: bytes) -> None:
        """Somebody publishes a retained message."""
        if payload:
            self.retained[topic] = payload
        else:
            self.retained.pop(topic, None)
        if self.connected:
            self.to_publisher.append(Publication(topic, payload))

    def deliver(self) -> None:
        while self.to_publisher:
            item = self.to_publisher.popleft()
            if item is None:
                self.agreement.acknowledged()
            else:
                self.agreement.observed(*item, self.now_ms)

    def lose(self) -> None:
        """The broker's queue overflows: the oldest read-back is dropped."""
        if self.to_publisher and self.to_publisher[0] is not None:
            self.to_publisher.popleft()

    def connect(self, *, window: int = 2) -> None:
        self.connected = True
        self.to_publisher.clear()
        self.agreement.connected(window, self.now_ms)
        for topic, payload in self.retained.items():
            self.to_publisher.append(Publication(topic, payload))

    def disconnect(self, *, empty: bool) -> None:
        self.connected = False
        self.to_publisher.clear()
        self.agreement.disconnected()
        if empty:
            self.retained.clear()

    def step(self) -> None:
        for publication in self.agreement.due(self.now_ms):
            if self.connected:
                self.write(*publication)
                self.to_publisher.append(None)

    def settle(self) -> None:
        """As the publisher does: read rows when something is odd, publish, wait for what is due."""
        for _ in range(1_000):
            self.deliver()
            if self.agreement.unknown:
                self.poll()
            elif self.agreement.stale:
                self.wake()
            self.step()
            if not self.to_publisher:
                if self.agreement.settled:
                    return
                due_ms = self.agreement.next_due_ms()
                assert due_ms is not None, "not settled and nothing will ever be done about it"
                self.now_ms = max(self.now_ms, due_ms)
        raise AssertionError("never settled")


operations = st.one_of(
    st.tuples(st.just("commit"), st.sampled_from(TOPICS)),
    st.tuples(
        st.just("write"),
        st.sampled_from([*TOPICS, STRANGE]),
        st.sampled_from([b"", b"foreign", b"row 1", b"row 2"]),
    ),
    st.tuples(st.sampled_from(["wake", "poll", "deliver", "step", "lose", "connect"])),
    st.tuples(st.just("disconnect"), st.booleans()),
    st.tuples(st.just("time"), st.integers(1, 5_000)),
)


@given(st.lists(operations, max_size=40))
def test_broker_agrees_after_any_interleaving(history: list[tuple[object, ...]]) -> None:
    world = World()
    world.commit(TOPICS[0])
    for name, *arguments in history:
        if name == "disconnect":
            world.disconnect(empty=bool(arguments[0]))
        elif name == "time":
            assert isinstance(arguments[0], int)
            world.now_ms += arguments[0]
        else:
            getattr(world, str(name))(*arguments)
    world.disconnect(empty=False)
    world.connect()
    world.poll()
    world.settle()
    assert world.retained == world.rows
    published = world.agreement.counts.published
    world.now_ms += 100_000
    world.poll()
    world.settle()
    assert world.agreement.counts.published == published, "it goes on publishing without need"


def connected(**rows: bytes) -> World:
    world = World()
    world.rows.update(rows)
    world.poll()
    world.connect(window=100)
    world.settle()
    return world


def test_endless_overwriting_is_answered_ever_slower() -> None:
    world = connected(**{TOPICS[1]: b"right"})
    for _ in range(60_000):
        if world.retained.get(TOPICS[1]) == b"right":
            world.write(TOPICS[1], b"wrong")
        world.deliver()
        world.step()
        world.now_ms += 1
    # At full speed these would be 30,000 repairs a minute.
    assert 5 < world.agreement.counts.repaired < 40


def test_stop_does_not_wait_behind_thousands_of_assignments() -> None:
    world = World()
    rows = {f"fleet/v1/home/device/d{i}/assignment": b"x" for i in range(1_000)}
    world.agreement.want(rows, complete=True)
    world.agreement.connected(50, 0)
    first = world.agreement.due(agreement.READ_BACK_MS)
    assert len(first) == 50, "publications are not paced"
    world.agreement.want({TOPICS[0]: b"stop"}, complete=False)
    for _ in first:
        world.agreement.acknowledged()
    assert world.agreement.due(agreement.READ_BACK_MS) == [Publication(TOPICS[0], b"stop")]


def test_own_echo_of_an_older_row_is_no_reason_to_repair() -> None:
    world = connected(**{TOPICS[1]: b"first"})
    world.rows[TOPICS[1]] = b"second"
    world.wake()
    world.step()
    world.rows[TOPICS[1]] = b"third"
    world.wake()
    world.step()
    world.settle()
    assert world.retained == {TOPICS[1]: b"third"}
    assert world.agreement.counts.repaired == 0
    assert world.agreement.counts.published == 3


def test_what_is_never_read_back_is_published_ever_later() -> None:
    world = World()
    world.agreement.want({TOPICS[1]: b"x"}, complete=True)
    world.agreement.connected(10, 0)
    times_ms = []
    for now_ms in range(0, 120_000, 100):
        if world.agreement.due(now_ms):
            world.agreement.acknowledged()
            times_ms.append(now_ms)
    gaps_ms = [later - earlier for earlier, later in itertools.pairwise(times_ms)]
    assert gaps_ms == sorted(gaps_ms)
    assert gaps_ms[0] == agreement.ECHO_MS
    assert gaps_ms[-1] == agreement.LONGEST_WAIT_MS
