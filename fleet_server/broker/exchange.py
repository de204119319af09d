"""Publishing and subscribing: what one client says and who hears it (3.3, 3.8, 3.10, 4.7).

Decides whether a PUBLISH, a will or a SUBSCRIBE is allowed, what is retained and to whom a
message goes. Leaves out connections (``core``) and the pace of one receiver (``delivery``).
"""

from __future__ import annotations

from fleet_server.broker.delivery import Delivery, Statistics
from fleet_server.broker.errors import PacketError
from fleet_server.broker.limits import Limits
from fleet_server.broker.messages import Message, Variant, received_message
from fleet_server.broker.outputs import Output, Send
from fleet_server.broker.packet_types import MQTT_5
from fleet_server.broker.packets import (
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    RetainHandling,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
)
from fleet_server.broker.policy import Policy
from fleet_server.broker.reason_codes import ReasonCode
from fleet_server.broker.retained import RetainedMessages
from fleet_server.broker.sessions import Session, Subscription
from fleet_server.broker.subscriptions import SubscriptionTree
from fleet_server.broker.topics import check_topic_filter, check_topic_name, split_shared
from fleet_server.broker.wire_types import protocol_error

_GRANTED = (ReasonCode.SUCCESS, ReasonCode.GRANTED_QOS_1, ReasonCode.GRANTED_QOS_2)


class Exchange:
    """The topics of one broker: who subscribes to them and what they retain.

    A handler raises ``PacketError`` where the client has to be disconnected for its packet.
    """

    def __init__(self, limits: Limits, policy: Policy, statistics: Statistics) -> None:
        self._limits = limits
        self._policy = policy
        self._statistics = statistics
        self.subscriptions = SubscriptionTree()
        self.retained = RetainedMessages(limits)
        self.delivery = Delivery(limits, statistics)

    def leave(
        self, session: Session, now_ms: int, outputs: list[Output], *, publish_will: bool
    ) -> None:
        """Takes a session's subscriptions away and publishes its will where that is due."""
        for topic_filter in session.subscriptions:
            self.subscriptions.remove(session, topic_filter)
        will = session.will
        if will is None or not publish_will:
            return
        # 3.1.3.2.2: a will delay ends with the session, and the session ends here.
        message = received_message(
            will.topic, will.payload, will.qos, will.retain, will.properties, now_ms
        )
        if self._accept(message, now_ms):
            self._fan_out(message, session, now_ms, outputs)
        else:
            self._statistics.messages_dropped += 1

    # -- messages ----------------------------------------------------------------------------

    def on_publish(
        self, session: Session, packet: Publish, now_ms: int, outputs: list[Output]
    ) -> None:
        properties = packet.properties
        if properties.topic_alias is not None:  # 3.3.2.3.4: Topic Alias Maximum is 0
            raise PacketError(ReasonCode.TOPIC_ALIAS_INVALID, "topic aliases are not offered")
        if properties.subscription_identifiers:  # 3.3.4: only a server sends them
            raise protocol_error("a subscription identifier from a client")
        check_topic_name(packet.topic, self._limits)
        self._statistics.messages_received += 1
        if packet.qos == 2:
            if packet.packet_id in session.unreleased:  # 4.3.3: a repetition, passed on before
                outputs.append(Send(session.connection, PubRec(packet.packet_id), session.version))
                return
            if len(session.unreleased) >= self._limits.receive_maximum:
                raise PacketError(ReasonCode.RECEIVE_MAXIMUM_EXCEEDED, "too many QoS 2 in flight")
        if not self._policy.may_publish(session.identity, packet.topic):
            self._refuse_publish(session, packet, ReasonCode.NOT_AUTHORIZED, outputs)
            return
        message = received_message(
            packet.topic, packet.payload, packet.qos, packet.retain, properties, now_ms
        )
        if not self._accept(message, now_ms):
            self._refuse_publish(session, packet, ReasonCode.QUOTA_EXCEEDED, outputs)
            return
        received = self._fan_out(message, session, now_ms, outputs)
        reason = ReasonCode.SUCCESS if received else ReasonCode.NO_MATCHING_SUBSCRIBERS
        if packet.qos == 1:
            outputs.append(
                Send(session.connection, PubAck(packet.packet_id, reason), session.version)
            )
        elif packet.qos == 2:
            session.unreleased.add(packet.packet_id)
            outputs.append(
                Send(session.connection, PubRec(packet.packet_id, reason), session.version)
            )

    def _refuse_publish(
        self, session: Session, packet: Publish, reason: ReasonCode, outputs: list[Output]
    ) -> None:
        """Says so where the protocol has words for it, and closes where it has none (3.3.5)."""
        self._statistics.messages_dropped += 1
        if packet.qos == 0 or session.version != MQTT_5:
            raise PacketError(reason, f"publishing to {packet.topic!r} was refused")
        answer = PubAck if packet.qos == 1 else PubRec
        outputs.append(Send(session.connection, answer(packet.packet_id, reason), session.version))

    def on_pubrel(
        self, session: Session, packet: PubRel, now_ms: int, outputs: list[Output]
    ) -> None:
        reason = ReasonCode.SUCCESS
        if packet.packet_id in session.unreleased:
            session.unreleased.remove(packet.packet_id)
        else:
            reason = ReasonCode.PACKET_IDENTIFIER_NOT_FOUND
        outputs.append(Send(session.connection, PubComp(packet.packet_id, reason), session.version))

    def _accept(self, message: Message, now_ms: int) -> bool:
        """Retains the message where it asks for that; False where there is no room for it."""
        return not message.retain or self.retained.store(message, now_ms)

    def _fan_out(
        self, message: Message, origin: Session, now_ms: int, outputs: list[Output]
    ) -> int:
        """Delivers to every matching subscription (3.3.4). Returns how many matched."""
        received = 0
        deliver = self.delivery.deliver
        for session, subscription in self.subscriptions.match(message.topic):
            if subscription.no_local and session is origin:  # 3.8.3.1
                continue
            received += 1
            variant = Variant(
                session.version,
                min(message.qos, subscription.qos),
                message.retain and subscription.retain_as_published,  # 3.3.1.3
                subscription.identifiers,
            )
            deliver(session, message, variant, now_ms, outputs)
        return received

    # -- subscriptions -----------------------------------------------------------------------

    def on_subscribe(
        self, session: Session, packet: Subscribe, now_ms: int, outputs: list[Output]
    ) -> None:
        identifiers = packet.properties.subscription_identifiers
        reasons: list[ReasonCode] = []
        retained: list[tuple[Subscription, Message]] = []
        for request in packet.requests:
            try:
                subscription, is_new = self._subscribe(session, request, identifiers)
            except PacketError as error:
                if error.reason is ReasonCode.PROTOCOL_ERROR:
                    raise
                reasons.append(error.reason)
                continue
            reasons.append(_GRANTED[subscription.qos])
            if _wants_retained(request, is_new):
                found = self.retained.find(request.topic_filter, now_ms)
                retained.extend((subscription, message) for message in found)
        outputs.append(
            Send(session.connection, SubAck(packet.packet_id, tuple(reasons)), session.version)
        )
        for subscription, message in retained:
            qos = min(message.qos, subscription.qos)
            variant = Variant(session.version, qos, True, subscription.identifiers)
            self.delivery.deliver(session, message, variant, now_ms, outputs)

    def _subscribe(
        self, session: Session, request: SubscriptionRequest, identifiers: tuple[int, ...]
    ) -> tuple[Subscription, bool]:
        """Adds one subscription; also says whether it is new. Raises ``PacketError``."""
        topic_filter = request.topic_filter
        group, plain_filter = split_shared(topic_filter)
        check_topic_filter(plain_filter, self._limits)
        if group is not None and request.no_local:  # 3.8.3.1
            raise protocol_error("no local on a shared subscription")
        if not self._policy.may_subscribe(session.identity, plain_filter):
            raise PacketError(ReasonCode.NOT_AUTHORIZED, f"subscribing to {plain_filter!r}")
        if (
            topic_filter not in session.subscriptions
            and len(session.subscriptions) >= self._limits.max_subscriptions_per_client
        ):
            raise PacketError(ReasonCode.QUOTA_EXCEEDED, "too many subscriptions")
        subscription = Subscription(
            topic_filter=topic_filter,
            qos=request.qos,
            no_local=request.no_local,
            retain_as_published=request.retain_as_published,
            identifiers=identifiers,
        )
        is_new = self.subscriptions.add(session, subscription)
        session.subscriptions[topic_filter] = subscription
        return subscription, is_new

    def on_unsubscribe(
        self, session: Session, packet: Unsubscribe, now_ms: int, outputs: list[Output]
    ) -> None:
        reasons = []
        for topic_filter in packet.topic_filters:
            if session.subscriptions.pop(topic_filter, None) is None:
                reasons.append(ReasonCode.NO_SUBSCRIPTION_EXISTED)
            else:
                self.subscriptions.remove(session, topic_filter)
                reasons.append(ReasonCode.SUCCESS)
        answer = UnsubAck(packet.packet_id, tuple(reasons))
        outputs.append(Send(session.connection, answer, session.version))


def _wants_retained(request: SubscriptionRequest, is_new: bool) -> bool:
    if request.topic_filter.startswith("$share/"):  # 4.8.2: a shared one gets none
        return False
    handling = request.retain_handling
    return handling is RetainHandling.SEND or (handling is RetainHandling.SEND_IF_NEW and is_new)
