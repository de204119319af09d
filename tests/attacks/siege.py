"""An enrolled device and a mirror that an attacker holds: the agent's real fetch code between them.

The mirror hands out what the fleet's repository says until a test tells it otherwise. The attacker
may change every byte, and holds whichever of the repository's keys a test lends him.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata
from tuf.api.serialization.json import JSONSerializer

from device_agent.errors import StepFailed
from device_agent.shell.catalogue import FOLDER, Catalogue
from device_agent.shell.clock import SystemClock
from device_agent.shell.http_source import HttpSource
from device_agent.shell.identity import enrol
from device_agent.shell.release_files import Device, ReleaseFiles, fetch_release
from device_agent.shell.store import Store
from fleet_contract.errors import Reason
from fleet_contract.manifest import Capabilities
from fleet_contract.trust.directive import ReleaseRef
from tests.device_agent.shell.toy_fleet import DEVICE, MODEL, ToyFleet

DAY_MS = 86_400_000
CAPABILITIES = Capabilities({"onnxruntime": "1.31.1"}, "x86_64", 26, 13, 1 << 30)


class Clock(SystemClock):
    """The device's clock; ``ahead_ms`` puts it forward."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


@dataclass
class Siege:
    """``fetch`` is what the agent does when it is told to run a release."""

    fleet: ToyFleet
    store: Store
    clock: Clock

    @classmethod
    def begin(cls, folder: Path) -> Siege:
        fleet, store, clock = ToyFleet(with_broker=False), Store(folder), Clock()
        store = Store(folder, reserve_bytes=0)
        enrol(store, fleet.token(), DEVICE, CAPABILITIES, clock)
        siege = cls(fleet, store, clock)
        siege.fetch(fleet.release("1.0.0", opset=13))
        return siege

    # -- the device ---------------------------------------------------------------------------

    def fetch(self, release: ReleaseRef, *, time_floor_ms: int = 0) -> ReleaseFiles:
        return fetch_release(
            HttpSource(f"{self.fleet.url}/v1/store", ticks_ns=self.clock.ticks_ns),
            self.store,
            Catalogue(self.store.folder / FOLDER, self.fleet.url, self.clock),
            MODEL,
            release,
            device=Device(CAPABILITIES, {}),
            time_floor_ms=time_floor_ms,
            canceled=lambda: False,
        )

    def refused(self, release: ReleaseRef, reason: Reason, **given: Any) -> StepFailed:
        """Fetch; it must fail for this reason, leave no file, and keep what was believed."""
        before = self.held()
        with pytest.raises(StepFailed) as caught:
            self.fetch(release, **given)
        assert caught.value.reason is reason, caught.value
        assert self.store.load_manifest(release.digest) is None
        assert self.held() == before
        return caught.value

    def held(self) -> set[str]:
        """Names of the files of releases in the store."""
        return {path.name for path in self.store.artifact("0" * 64).parent.iterdir()}

    def believed(self, role: str) -> int:
        """Version of the metadata that the device has stored for a role, 0 for none."""
        path = self.store.folder / FOLDER / f"{role}.json"
        return int(Metadata.from_file(str(path)).signed.version) if path.exists() else 0

    # -- the attacker -------------------------------------------------------------------------

    def key_of(self, role: str) -> Signer:
        """The stolen key of a role."""
        return self.fleet.catalogue.changes.signers.of(role)[0]

    def present(self, role: str) -> tuple[str, Metadata[Any]]:
        """Name and content of the newest metadata of a role."""
        version = self.fleet.catalogue.versions()[role]
        name = "timestamp.json" if role == "timestamp" else f"{version}.{role}.json"
        data = self.fleet.catalogue.read(name)
        assert data is not None
        return name, Metadata.from_bytes(data)

    def bin_of(self, path: str) -> str:
        """The role that knows a target."""
        return next(
            role
            for role in self.fleet.catalogue.versions()
            if role.startswith("bin.") and path in self.present(role)[1].signed.targets
        )

    def show(self, name: str, data: bytes | Callable[..., bool]) -> None:
        """Put something else under the name of a metadata file."""
        if isinstance(data, bytes):
            body = data
            self.fleet.misbehave[f"/v1/trust/metadata/{name}"] = lambda handler: answer(
                handler, 200, body
            )
        else:
            self.fleet.misbehave[f"/v1/trust/metadata/{name}"] = data

    def hide(self, name: str) -> None:
        self.show(name, lambda handler: answer(handler, 404, b""))

    def copy(self) -> dict[str, bytes]:
        """Everything that the repository says now, for a replay."""
        found = {}
        for role in self.fleet.catalogue.versions():
            name, _ = self.present(role)
            found[name] = self.fleet.catalogue.read(name) or b""
        return found

    def replay(self, copied: dict[str, bytes]) -> None:
        for name, data in copied.items():
            self.show(name, data)

    def give_up(self) -> None:
        """The attacker is gone: the mirror shows what is."""
        self.fleet.misbehave.clear()


def answer(handler: Any, status: int, body: bytes) -> bool:
    handler.answer(status, body)
    return True


def stranger() -> CryptoSigner:
    """A key that nobody vouches for."""
    return CryptoSigner(Ed25519PrivateKey.generate())


def signed(metadata: Metadata[Any], *signers: Signer) -> bytes:
    """Sign anew, with these keys and no others."""
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(JSONSerializer(compact=True))
