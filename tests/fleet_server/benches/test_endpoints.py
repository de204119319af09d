"""Guards the devices' side of benches on a running server, by devices that show certificates."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fleet_contract import codec, limits
from fleet_contract.errors import Reason
from fleet_contract.manifest import Capabilities
from fleet_contract.messages.bench import BenchPoll, BenchResult, Timed
from fleet_contract.trust.bench import BenchJob, check_bench_job
from fleet_server.benches.stopwatch import BenchStopwatch
from fleet_server.releases.laboratory.tasks import Raced
from fleet_server.releases.timing import Heat, Target, Unavailable
from tests.fleet_server.device_key import DeviceKey


class Device:
    """A device that speaks to the listener of devices."""

    def __init__(self, server: Any, name: str, capabilities: Capabilities) -> None:
        self.name = name
        self.capabilities = capabilities
        body = {"labels": {"hardware": "pi4", "bench": "yes"}}
        token = server.client.post("/v1/devices/tokens", json=body).json()["token"]
        anchors = server.settings.data_dir / "pki" / "anchors.pem"
        key, url = DeviceKey(), server.settings.devices_url
        key.enrol(url, token, name, capabilities, anchors)
        self.client = httpx.Client(base_url=url, verify=key.context(anchors), timeout=60)

    def poll(self, done: int = 0, refusal: str = "") -> httpx.Response:
        body = BenchPoll(self.capabilities, done, refusal)
        return self.client.post("/v1/bench/poll", content=codec.encode_json(body))

    def hand_in(self, number: int, result: BenchResult) -> httpx.Response:
        path = f"/v1/bench/jobs/{number}/result"
        return self.client.post(path, content=codec.encode_json(result))


class Staging:
    """The thread that stages: it has a heat timed."""

    def __init__(self, stopwatch: BenchStopwatch, device: str, heat: Heat) -> None:
        self._came: list[Any] = []

        def work() -> None:
            try:
                self._came.append(stopwatch.time(device, heat, "toy 1.0.0"))
            except Exception as error:
                self._came.append(error)

        self._thread = threading.Thread(target=work)
        self._thread.start()

    def outcome(self) -> Any:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self._came[0]


@pytest.fixture
def desk(server: Any) -> Any:
    return server.app.state.desk


@pytest.fixture
def stopwatch(server: Any, tmp_path: Path) -> BenchStopwatch:
    state = server.app.state
    return BenchStopwatch(
        *(tmp_path / "parcels", server.settings.fleet, state.database, state.keyring),
        *(state.clock, state.desk),
    )


@pytest.fixture
def pi(server: Any, desk: Any, capabilities: Capabilities) -> Iterator[Device]:
    device = Device(server, "pi-1", capabilities)
    desk.poll_ms = 0
    assert device.poll().status_code == 204
    desk.poll_ms = 60_000
    yield device
    device.client.close()


def read(server: Any, answer: httpx.Response, device: str) -> BenchJob:
    assert answer.status_code == 200, answer.text
    state = server.app.state
    return check_bench_job(
        answer.content,
        keyset=state.keyring.keyset,
        fleet=server.settings.fleet,
        device=device,
        done=0,
        now_ms=state.clock.now_ms(),
    )


def test_job_goes_the_whole_way(
    server: Any, pi: Device, stopwatch: BenchStopwatch, make_heat: Any, tmp_path: Path
) -> None:
    choice = stopwatch.choose(Target(), make_heat().runtimes())
    assert (choice.device, choice.hardware) == ("pi-1", "pi4")
    staging = Staging(stopwatch, "pi-1", make_heat())
    job = read(server, pi.poll(), "pi-1")
    for digest, file in job.files().items():
        assert len(pi.client.get(f"/v1/bench/files/{digest}").content) == file.size_bytes
    rest = {"Range": "bytes=2-"}
    candidate = f"/v1/bench/files/{job.candidates[0].artifact.digest}"
    assert pi.client.get(candidate, headers=rest).content == b"t8"
    digests = [item.artifact.digest for item in job.candidates]
    result = BenchResult(
        [
            Timed(digests[1], Reason.BROKEN_MODEL, "no such operator"),
            Timed(digests[0], None, "", 50.0, 100.0, 60.0, 110.0, 9),
            Timed("f" * 64, None, "", 1.0, 100.0, 1.0, 110.0, 9),
        ]
    )
    assert pi.hand_in(job.number, result).status_code == 204
    first, second = staging.outcome()
    assert first == Raced(50.0, 100.0, 9)
    assert "broken_model on the bench device: no such operator" in second
    assert list((tmp_path / "parcels").iterdir()) == []
    assert pi.hand_in(job.number, result).status_code == 404
    assert pi.client.get(candidate).status_code == 404
    shown = server.client.get("/v1/benches").json()["benches"]
    assert [(item["device"], item["jobs_done"], item["there"]) for item in shown] == [
        ("pi-1", 1, True)
    ]
    audited = server.client.get("/v1/audit").json()
    assert "bench.result" in str(audited)
    assert stopwatch.choose(Target(), set()).device == "pi-1"


def test_other_device_gets_neither_job_nor_files_nor_says_what_came_of_it(
    server: Any,
    desk: Any,
    pi: Device,
    stopwatch: BenchStopwatch,
    make_heat: Any,
    capabilities: Capabilities,
) -> None:
    other = Device(server, "pi-2", capabilities)
    staging = Staging(stopwatch, "pi-1", make_heat())
    job = read(server, pi.poll(), "pi-1")
    desk.poll_ms = 0
    assert other.poll().status_code == 204
    assert other.client.get(f"/v1/bench/files/{job.rows.digest}").status_code == 404
    figures = [Timed(item.artifact.digest, None, "", 1, 1, 1, 1, 9) for item in job.candidates]
    assert other.hand_in(job.number, BenchResult(figures)).status_code == 404
    assert pi.hand_in(job.number, BenchResult([], Reason.WRONG_HASH, "x")).status_code == 204
    came = staging.outcome()
    assert isinstance(came, Unavailable)
    assert "wrong_hash" in str(came)
    other.client.close()


def test_device_that_nobody_made_a_bench_gets_no_candidates(
    server: Any, pi: Device, stopwatch: BenchStopwatch
) -> None:
    labels = {"labels": {"hardware": "pi4"}}
    assert server.client.put("/v1/devices/pi-1/labels", json=labels).status_code == 200
    refused = pi.poll()
    assert refused.status_code == 403
    assert refused.json()["type"].endswith("not_a_bench")
    assert server.client.get("/v1/benches").json() == {"benches": []}
    assert stopwatch.choose(Target(labels={"hardware": "pi4"}), set()).device == ""


def test_bodies_are_bounded_and_read_strictly(pi: Device) -> None:
    long = b" " * (limits.STATUS_BYTES + 1)
    for path in ("/v1/bench/poll", "/v1/bench/jobs/1/result"):
        assert pi.client.post(path, content=long).status_code in {400, 413, 422}
        assert pi.client.post(path, content=b"[]").status_code in {400, 422}
    assert pi.client.get("/v1/bench/files/passwd").status_code == 422


def test_device_that_answers_no_more(
    server: Any, pi: Device, stopwatch: BenchStopwatch, make_heat: Any
) -> None:
    staging = Staging(stopwatch, "pi-1", make_heat())
    job = read(server, pi.poll(), "pi-1")
    server.app.state.desk.poll_ms = 0
    # It was started anew while it worked.
    assert pi.poll(done=job.number).status_code == 204
    came = staging.outcome()
    assert isinstance(came, Unavailable)
    assert "without a result" in str(came)
    with pytest.raises(Unavailable):
        stopwatch.time("nobody", make_heat(), "toy 1.0.0")
