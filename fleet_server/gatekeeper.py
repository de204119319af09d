"""Who is let into the broker, and how somebody who is in there is put out.

Decides how a revocation reaches whichever broker there is. The embedded one asks at each
connection; a private Mosquitto reads a list, and is told when it changes; one that somebody else
runs gets its list from whoever runs it, but connections are ended there, too.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from fleet_contract import topics
from fleet_contract.topics import DeviceChannel
from fleet_server.broker.choice import Broker
from fleet_server.broker.errors import BrokerError
from fleet_server.broker.listener import EmbeddedBroker
from fleet_server.broker.mosquitto import PrivateMosquitto
from fleet_server.broker.policy import PeerCertificate
from fleet_server.broker.takeover import throw_out
from fleet_server.clock import Clock
from fleet_server.database import Database
from fleet_server.devices import certificate_repository, certificates
from fleet_server.dispatch.connection import BrokerAddress
from fleet_server.errors import Unauthorized
from fleet_server.trust.authority.authority import Authority

HALF_OPEN_S = 100.0
"""How long a Mosquitto bears a connection that showed its certificate and does not yet say what it
wants: 90 seconds, and it looks now and then. A revocation list does not touch such a one."""

log = structlog.get_logger(__name__)


class Gatekeeper:
    """One for a server; ``use`` says which broker there is."""

    def __init__(self, database: Database, authority: Authority, clock: Clock, fleet: str) -> None:
        self._database = database
        self._authority = authority
        self._clock = clock
        self._fleet = fleet
        self._broker: Broker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._working: dict[asyncio.Task[None], Sequence[str]] = {}
        self._waiting: dict[asyncio.Task[None], Sequence[str]] = {}

    def use(self, broker: Broker) -> None:
        """Name the broker, on the loop on which it was started."""
        self._broker = broker
        self._loop = asyncio.get_running_loop()

    def is_believed(self, certificate: PeerCertificate) -> bool:
        """Say whether the holder of a certificate may come in; the embedded broker asks."""
        if self._authority.is_own(certificate.fingerprint):
            return True
        now_ms = self._clock.now_ms()
        if self._authority.forgotten(certificate.der) is not None:
            with self._database.transaction() as session:
                certificates.recall(session, self._authority, self._fleet, certificate.der, now_ms)
        try:
            with self._database.reading() as session:
                name = certificates.holder(
                    session,
                    self._authority,
                    self._fleet,
                    certificate.fingerprint,
                    now_ms=now_ms,
                )
        except Unauthorized as refused:
            log.warning("broker refuses", name=certificate.name[:63], reason=refused.code)
            return False
        return name == certificate.name

    def write_revocations(self) -> None:
        """Write the list that Mosquitto reads. Raises OSError."""
        with self._database.reading() as session:
            revoked = certificate_repository.revoked(session, self._fleet, self._clock.now_ms())
        self._authority.write_revocations(revoked)

    def reload(self) -> None:
        """Have the broker take up changed authorities, certificates and revocations.

        Raises OSError.
        """
        self.write_revocations()
        if isinstance(self._broker, PrivateMosquitto):
            self._broker.reload()

    def expel(self, names: Sequence[str]) -> None:
        """End the connections of devices whose certificates were just revoked; from any thread."""
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(lambda: self._begin(self._expel, names, self._working))

    @property
    def is_expelling(self) -> bool:
        """Whether somebody is being put out: who comes back under the same name meanwhile may have
        to come once more."""
        return bool(self._working)

    def will_expel(self, name: str) -> bool:
        """Whether a round is still to come for a device."""
        found = (*self._working.values(), *self._waiting.values())
        return any(name in names for names in found)

    def close(self) -> None:
        """Leave off; on the loop, while the broker is still there."""
        for task in (*self._working, *self._waiting):
            task.cancel()

    def _begin(
        self,
        work: Callable[[Sequence[str]], Coroutine[None, None, None]],
        names: Sequence[str],
        kept_in: dict[asyncio.Task[None], Sequence[str]],
    ) -> None:
        task = asyncio.get_running_loop().create_task(work(names))
        kept_in[task] = names
        task.add_done_callback(kept_in.pop)

    async def _expel(self, names: Sequence[str]) -> None:
        try:
            await run_in_threadpool(self.write_revocations)
            if isinstance(self._broker, PrivateMosquitto):
                # Put out before it has read the list, a device would be let in again.
                await self._broker.take_up()
        except (OSError, BrokerError, SQLAlchemyError) as error:
            log.error("the broker does not know who was revoked", error=str(error))
        await self._put_out(names)
        if not isinstance(self._broker, EmbeddedBroker):
            self._begin(self._put_out_late, names, self._waiting)

    async def _put_out_late(self, names: Sequence[str]) -> None:
        """Put out who had shown a certificate before it was revoked, and has come in since."""
        await asyncio.sleep(HALF_OPEN_S)
        await self._put_out(names)

    async def _put_out(self, names: Sequence[str]) -> None:
        broker = self._broker
        for name in names:
            # Heard again by who comes later, it would stand above what the next one says.
            clears = topics.device(self._fleet, name, DeviceChannel.PRESENCE)
            if isinstance(broker, EmbeddedBroker):
                broker.expel(name, clears=clears)
                continue
            try:
                context = await run_in_threadpool(self._authority.stand_in, name)
                if isinstance(broker, PrivateMosquitto):
                    await broker.expel(name, context, clears=clears)
                elif broker is not None and (address := BrokerAddress.parse(broker.url)).tls:
                    await throw_out(address.host, address.port, name, context, clears=clears)
            except (OSError, TimeoutError, BrokerError) as error:
                log.error("device not put out of the broker", name=name[:63], error=str(error))
