"""Brings messages of devices into the database, in batches, acknowledged after the commit.

One worker decodes what arrived, hands it to the handlers of its channels in one transaction, then
acknowledges it to the broker, then tells the devices what is committed. While the database fails
nothing is acknowledged, so the broker holds back the rest. A message that is malformed, or that
makes a handler raise, is counted, logged, acknowledged and dropped: it never stops the others.
What a message means is decided by the handlers.
"""

import queue
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from fleet_contract import codec, topics
from fleet_contract.errors import InvalidName, Refused
from fleet_contract.messages.presence import read_presence
from fleet_contract.messages.progress import read_progress
from fleet_contract.messages.report import read_report
from fleet_contract.topics import DeviceChannel
from fleet_server.clock import Clock
from fleet_server.database import Database
from fleet_server.dispatch.acks import merge_acks
from fleet_server.dispatch.connection import BrokerAddress, Certified, Connection, Received
from fleet_server.dispatch.inbound import DeviceAck, Handler, Inbound, Message
from fleet_server.errors import Unavailable

CHANNELS = (DeviceChannel.PRESENCE, DeviceChannel.PROGRESS, DeviceChannel.REPORT)
"""In this order within a batch: a device is known to be there before its progress is stored."""
RECEIVE_MAXIMUM = 1_000
"""Unacknowledged messages at a time: two full batches, so that one arrives while one commits."""
WAITING = 2 * RECEIVE_MAXIMUM
"""Messages that wait for the worker; those of QoS 0 beyond it are dropped and counted."""
RETRY_MS = 50
LONGEST_RETRY_MS = 2_000

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class IngestCounts:
    """What was done since the start; ``lag_ms`` is the age of the oldest message of the last batch
    when it was committed, ``waiting`` the number of messages that wait for the worker.
    """

    batches: int = 0
    messages: int = 0
    retries: int = 0
    acks: int = 0
    lag_ms: int = 0
    waiting: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Arrival:
    received: Received
    received_ms: int


class Ingest:
    """Receives presence, progress and reports of one fleet. ``handlers`` says who stores them."""

    def __init__(
        self,
        database: Database,
        fleet: str,
        address: BrokerAddress,
        clock: Clock,
        handlers: Mapping[DeviceChannel, Handler],
        *,
        batch: int = 500,
        wait_ms: int = 20,
        certified: Certified | None = None,
    ) -> None:
        self._database = database
        self._fleet = fleet
        self._clock = clock
        self._handlers = handlers
        self._batch = batch
        self._wait_ms = wait_ms
        self._counts = IngestCounts()
        self._arrivals: queue.Queue[_Arrival | None] = queue.Queue(WAITING)
        self._stopping = threading.Event()
        self._connection = Connection(
            address,
            self,
            clock,
            role="ingest",
            filters=[topics.device_filter(fleet, channel) for channel in CHANNELS],
            manual_acknowledgement=True,
            receive_maximum=RECEIVE_MAXIMUM,
            certified=certified,
        )
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._connection.start()

    def stop(self) -> None:
        """Finish the batch at hand and end; what is not committed stays with the devices."""
        self._stopping.set()
        self._connection.stop()
        with suppress(queue.Full):  # when it is full, the worker does not wait for it
            self._arrivals.put_nowait(None)
        self._thread.join()

    @property
    def ready(self) -> bool:
        """Whether it is connected and every subscription was granted."""
        return self._connection.ready

    def counts(self) -> IngestCounts:
        """Return a copy of what was counted."""
        counts = self._counts
        return IngestCounts(
            counts.batches,
            counts.messages,
            counts.retries,
            counts.acks,
            counts.lag_ms,
            self._arrivals.qsize(),
            dict(counts.rejected),
        )

    def connected(self, window: int) -> None:
        pass

    def disconnected(self) -> None:
        pass

    def acknowledged(self) -> None:
        pass

    def received(self, message: Received) -> None:
        arrival = _Arrival(message, self._clock.now_ms())
        if not message.qos and self._arrivals.qsize() >= WAITING - RECEIVE_MAXIMUM:
            self._count_rejected("queue_full")
            return
        # Receive Maximum keeps those of QoS 1 below the bound; with a broker that does not care,
        # waiting here slows the connection down.
        while not self._stopping.is_set():
            with suppress(queue.Full):
                self._arrivals.put(arrival, timeout=0.2)
                return

    def _run(self) -> None:
        while not self._stopping.is_set():
            arrivals = self._collect()
            if not arrivals:
                continue
            try:
                self._take(arrivals)
            except Exception:
                # Devices say again what was not acknowledged to them; the next batch must come.
                log.exception("a batch failed and is left to its devices")

    def _collect(self) -> list[_Arrival]:
        """Return at most a batch: what arrives within ``wait_ms`` of the first message."""
        first = self._arrivals.get()
        if first is None:
            return []
        arrivals = [first]
        until_ms = self._clock.monotonic_ms() + self._wait_ms
        while len(arrivals) < self._batch:
            left_ms = until_ms - self._clock.monotonic_ms()
            try:
                if left_ms > 0:
                    arrival = self._arrivals.get(timeout=left_ms / 1_000)
                else:
                    arrival = self._arrivals.get_nowait()
            except queue.Empty:
                break
            if arrival is None:
                break
            arrivals.append(arrival)
        return arrivals

    def _take(self, arrivals: Sequence[_Arrival]) -> None:
        messages = [message for arrival in arrivals if (message := self._decode(arrival))]
        acks = self._store(messages)
        if acks is None:
            return  # stopped before the database came back: nothing is acknowledged
        for arrival in arrivals:
            self._connection.acknowledge(arrival.received)
        self._counts.batches += 1
        self._counts.messages += len(messages)
        self._counts.lag_ms = max(0, self._clock.now_ms() - arrivals[0].received_ms)
        for device, ack in merge_acks(acks):
            topic = topics.device(self._fleet, device, DeviceChannel.ACK)
            self._connection.publish(topic, codec.encode_msgpack(ack), qos=0, retain=False)
            self._counts.acks += 1

    def _decode(self, arrival: _Arrival) -> Inbound | None:
        received = arrival.received
        try:
            topic = topics.read_device(received.topic)
            if received.retain and topic.channel is not DeviceChannel.PRESENCE:
                # It may be the word of who had the name before: no agent leaves such a thing.
                self._reject("retained", received.topic, "only presence may lie at the broker")
                return None
            message = _read(topic.channel, received.payload)
        except InvalidName as error:
            self._reject("topic", received.topic, str(error))
            return None
        except Refused as refused:
            # An empty retained message clears a presence: that is no document, and no fault.
            if received.payload:
                self._reject(refused.reason.value, received.topic, refused.detail)
            return None
        return Inbound(
            topic.fleet, topic.device, topic.channel, topic.model, message, arrival.received_ms
        )

    def _store(self, messages: Sequence[Inbound]) -> list[DeviceAck] | None:
        """Commit the messages, retrying while the database fails; None when it was stopped."""
        if not messages:
            return []
        failures = 0
        while True:
            try:
                return self._commit(messages)
            except Exception as error:
                if not _is_database_down(error):
                    return self._store_apart(messages, error)
                self._counts.retries += 1
                log.warning("ingest waits for the database", error=type(error).__name__)
            wait_ms = min(RETRY_MS << min(failures, 10), LONGEST_RETRY_MS)
            failures += 1
            if self._stopping.wait(wait_ms / 1_000):
                return None

    def _commit(self, messages: Sequence[Inbound]) -> list[DeviceAck]:
        now_ms = self._clock.now_ms()
        acks: list[DeviceAck] = []
        with self._database.transaction() as session:
            for channel in CHANNELS:
                batch = [message for message in messages if message.channel is channel]
                if batch and channel in self._handlers:
                    acks += self._handlers[channel](session, batch, now_ms)
        return acks

    def _store_apart(self, messages: Sequence[Inbound], error: Exception) -> list[DeviceAck] | None:
        """Halve the batch until the message that cannot be stored is alone, and drop that."""
        if len(messages) == 1:
            poison = messages[0]
            self._reject("handler", f"{poison.device}/{poison.channel.value}", repr(error)[:500])
            return []
        middle = len(messages) // 2
        first = self._store(messages[:middle])
        second = self._store(messages[middle:]) if first is not None else None
        return None if first is None or second is None else [*first, *second]

    def _reject(self, reason: str, topic: str, detail: str) -> None:
        self._count_rejected(reason)
        log.warning("message dropped", reason=reason, topic=topic[:300], detail=detail)

    def _count_rejected(self, reason: str) -> None:
        # The network thread counts one reason, the worker all others.
        self._counts.rejected[reason] = self._counts.rejected.get(reason, 0) + 1


def _read(channel: DeviceChannel, payload: bytes) -> Message:
    if channel is DeviceChannel.PRESENCE:
        return read_presence(payload)
    if channel is DeviceChannel.PROGRESS:
        return read_progress(payload)
    if channel is DeviceChannel.REPORT:
        return read_report(payload)
    raise InvalidName(f"nothing is received on {channel.value}")


def _is_database_down(error: Exception) -> bool:
    """Tell a database that fails from a message that it cannot store."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, OperationalError | PoolTimeout | Unavailable)
