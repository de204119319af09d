"""A device's key and certificate in an attacker's hands, and what he can do with them.

He speaks to the real broker and the real server by clients of his own, which keep to no rule of the
agent's. What he is told is returned, so that a test can say by whom he was refused, and why.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from device_agent.agent import Agent
from device_agent.shell.certificate import PAIR_FILE
from fleet_contract import codec
from fleet_contract.enrolment import RenewalRequest
from fleet_contract.manifest import Capabilities
from fleet_contract.messages.presence import Presence
from fleet_contract.messages.progress import ModelProgress, Phase, Progress
from fleet_server.broker.client import MqttClient
from fleet_server.broker.errors import BrokerError, RequestRefusedError
from fleet_server.broker.packets import Will
from fleet_server.problem import TYPE_PREFIX
from fleet_server.trust.authority import certificates
from tests.attacks.battlefield import DEADLINE_S, Battlefield
from tests.attacks.feeder import INPUTS
from tests.attacks.insider import MODEL
from tests.fleet_server.device_key import DeviceKey

CAPABILITIES = Capabilities({"onnxruntime": "1.31.1"}, "x86_64", 26, 13, 1 << 30)
LARGE = 1 << 50
"""Above any number of connections or messages of an honest device."""
SESSION = "badbadbadbadbadb"
WANTED = "e" * 64


@dataclass
class Identity:
    """``pair`` is a key and a certificate in PEM; nothing shows none."""

    field: Battlefield
    name: str
    pair: bytes = b""

    @classmethod
    def join(cls, field: Battlefield, name: str, token: str = "") -> Identity:
        """Enrol by a client of one's own."""
        key = DeviceKey()
        key.enrol(
            field.app.state.settings.devices_url,
            token or field.token(device=name),
            name,
            CAPABILITIES,
            field.anchors,
        )
        return cls(field, name, key.certificate.encode() + certificates.write_key(key.key))

    @classmethod
    def copy(cls, field: Battlefield, folder: Path, name: str) -> Identity:
        """Take what lies on a device."""
        return cls(field, name, (folder / PAIR_FILE).read_bytes())

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.field.anchors))
        if self.pair:
            with tempfile.NamedTemporaryFile(suffix=".pem") as file:
                Path(file.name).write_bytes(self.pair)
                context.load_cert_chain(file.name)
        return context

    # -- the broker ---------------------------------------------------------------------------

    @asynccontextmanager
    async def connected(
        self, *, client_id: str = "", will: Will | None = None
    ) -> AsyncIterator[MqttClient]:
        """A connection, which ends without a farewell. Raises OSError, BrokerError."""
        client = MqttClient(client_id or self.name, will=will)
        address = self.field.broker
        await client.connect(address.host, address.port, tls=self.context(), timeout_s=DEADLINE_S)
        try:
            yield client
        finally:
            client.drop()

    def enters(self, **options: Any) -> bool:
        """Whether the broker lets him in."""

        async def enter() -> None:
            async with self.connected(**options):
                pass

        try:
            asyncio.run(enter())
        except (OSError, BrokerError):
            return False
        return True

    def says(self, topic: str, payload: bytes, *, retain: bool = True, **options: Any) -> bool:
        """Whether the broker takes this from him."""

        async def say() -> bool:
            async with self.connected(**options) as client:
                try:
                    await client.publish(topic, payload, retain=retain)
                except RequestRefusedError:
                    return False
                return True

        return asyncio.run(say())

    # -- the server ---------------------------------------------------------------------------

    def ask(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Ask the server at its address for devices. Raises httpx.TransportError."""
        url = self.field.app.state.settings.devices_url
        with httpx.Client(base_url=url, verify=self.context(), timeout=DEADLINE_S) as client:
            return client.request(method, path, **content)

    def renew(self, key: DeviceKey | None = None) -> httpx.Response:
        """Ask for the next certificate, and take it if there is one."""
        key = key or DeviceKey()
        body = codec.encode_json(RenewalRequest(key.csr(self.name)))
        answer = self.ask("POST", "/v1/devices/renew", content=body)
        if answer.is_success:
            issued = str(answer.json()["certificate"]).encode()
            self.pair = issued + certificates.write_key(key.key)
        return answer

    def fetch(self) -> httpx.Response:
        """Ask for a file that every device of the fleet may read."""
        return self.ask("GET", f"/v1/store/{self.field.stable.manifest}")


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """The status and the code of a refusal."""
    return answer.status_code, str(answer.json()["type"]).removeprefix(TYPE_PREFIX)


def settled(field: Battlefield, name: str) -> Path:
    """A device that joined, and has its model."""
    folder = field.enrol(name)
    with field.agent_in(folder) as agent:
        agent.wait_for(MODEL, digest=field.stable.digest, timeout_s=DEADLINE_S)
        field.wait_until(lambda: heard(field, name), "the device to be heard")
    return folder


def put_out(field: Battlefield, name: str) -> str:
    """Replace a device, as an operator does; the token comes when all of that name are put out."""
    token: str = field.http.post(f"/v1/devices/{name}/replace").json()["token"]
    field.wait_until(lambda: not field.app.state.gatekeeper.is_expelling, f"{name} to be put out")
    return token


def give_away(field: Battlefield, name: str) -> str:
    """Replace a device; returns the token when what was said under its name is stored, too.

    Stored later, it would count as the next one's word.
    """
    token = put_out(field, name)
    # Messages are stored in their order, and this ends with a new one of the victim.
    field.restore()
    return token


def heard(field: Battlefield, name: str) -> bool:
    shown = field.device(name)
    return bool(
        shown["online"] and [item["active"] for item in shown["progress"]] == [field.stable.digest]
    )


def answers(field: Battlefield, *agents: Agent) -> bool:
    """Whether they do what they are there for, whatever the fleet thinks of them."""
    return all(
        agent.model(MODEL).predict(INPUTS).release == field.stable.digest for agent in agents
    )


def recorded(field: Battlefield, action: str, name: str) -> list[str]:
    """How what was done to a device ended, as the audit says it, the newest first."""
    entries = field.http.get("/v1/audit").json()["entries"]
    about = [entry for entry in entries if entry["resource_name"] == name]
    return [entry["outcome"] for entry in about if entry["action"] == action]


def forged_presence(*, online: bool = False, session: str = SESSION, above: int = 0) -> bytes:
    """A presence that would stand ``above`` any other."""
    active = {MODEL: WANTED}
    capabilities = CAPABILITIES if online else None
    birth, agent = LARGE + above, f"forged {above}"
    return codec.encode_msgpack(Presence(online, birth, session, 1, agent, capabilities, active))


def forged_progress() -> bytes:
    """Progress that would stand above any other."""
    lie = ModelProgress(MODEL, "", Phase.SUCCEEDED, WANTED, WANTED, WANTED, 1, LARGE, LARGE)
    return codec.encode_msgpack(Progress(SESSION, 1 << 40, LARGE, [lie]))
