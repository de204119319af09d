"""A whole agent against a toy fleet: it gets models, swaps, goes back, and forgets nothing."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from device_agent.agent import Agent
from device_agent.errors import ModelDisabled, NoModel, StartFailed
from device_agent.inference.probe import Prober
from device_agent.inference.probe_child import Verdict
from device_agent.shell.workshop import Workshop
from fleet_contract.errors import Reason
from fleet_contract.messages.progress import ModelProgress, Phase
from tests.device_agent.shell.toy_fleet import INPUTS, MODEL, OUTPUT, ToyFleet
from tests.device_agent.shell.toy_web import Handler

StartAgent = Callable[[], Agent]
pytestmark = pytest.mark.slow


def last(fleet: ToyFleet) -> ModelProgress | None:
    models = fleet.progress[-1].models if fleet.progress else []
    return models[0] if models else None


def is_in(fleet: ToyFleet, phase: Phase, digest: str) -> bool:
    model = last(fleet)
    return model is not None and (model.phase, model.target) == (phase, digest)


def test_first_release_answers_and_is_reported(fleet: ToyFleet, start_agent: StartAgent) -> None:
    first = fleet.release("1.0.0")
    fleet.admit()
    fleet.direct(first)
    agent = start_agent()
    assert agent.wait_for(MODEL, timeout_s=60) == ("1.0.0", first.digest)
    answer = agent.model(MODEL).predict(INPUTS)
    assert answer.release == first.digest
    assert np.array_equal(answer["y"], OUTPUT)
    fleet.wait_until(lambda: is_in(fleet, Phase.SUCCEEDED, first.digest))
    windows = [window for report in fleet.reports for window in report.windows]
    assert {window.release for window in windows} <= {first.digest}
    fleet.wait_until(
        lambda: sum(w.predictions for r in fleet.reports for w in r.windows if w.closed) >= 1
    )


def test_release_comes_from_where_the_server_leads_to(
    fleet: ToyFleet, start_agent: Callable[..., Agent]
) -> None:
    first = fleet.release("1.0.0")
    bucket = ToyFleet(with_broker=False)
    try:
        bucket.files = {path: data for path, data in fleet.files.items() if "artifacts/" in path}

        def lead(handler: Handler) -> bool:
            if not handler.headers.get("X-Edgefleet-Follow"):
                return False
            handler.answer(307, b"", {"Location": f"{bucket.url}{handler.path}"})
            return True

        fleet.misbehave = dict.fromkeys(bucket.files, lead)
        fleet.admit()
        fleet.direct(first)
        agent = start_agent(download_origins=[bucket.url])
        assert agent.wait_for(MODEL, timeout_s=60) == ("1.0.0", first.digest)
        # The artifact and its golden vectors; neither the manifest nor the metadata.
        assert len(bucket.requests) == 2
        assert all(path in bucket.files for path, _ in bucket.requests)
    finally:
        bucket.close()


def test_swap_and_rollback_fail_no_prediction(fleet: ToyFleet, start_agent: StartAgent) -> None:
    first, second = fleet.release("1.0.0"), fleet.release("2.0.0", opset=14)
    fleet.admit()
    fleet.direct(first)
    agent = start_agent()
    agent.wait_for(MODEL, timeout_s=60)
    model = agent.model(MODEL)
    seen: set[str] = set()
    errors: list[Exception] = []
    done = threading.Event()

    def feed() -> None:
        while not done.is_set():
            try:
                seen.add(model.predict(INPUTS).release)
            except Exception as error:
                errors.append(error)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        fleet.wait_until(lambda: first.digest in seen)
        fleet.direct(second, standby=first)
        agent.wait_for(MODEL, version="2.0.0", timeout_s=60)
        fleet.wait_until(lambda: is_in(fleet, Phase.SUCCEEDED, second.digest))
        fleet.wait_until(lambda: second.digest in seen)
        fleet.requests.clear()
        fleet.direct(first, standby=first)
        agent.wait_for(MODEL, version="1.0.0", timeout_s=60)
    finally:
        done.set()
        feeder.join()
    assert errors == []
    assert seen == {first.digest, second.digest}
    assert fleet.requests == [], "a rollback must not need the server"


def test_rollback_does_not_wait_for_a_probe(
    fleet: ToyFleet, start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = fleet.release("1.0.0"), fleet.release("2.0.0", opset=14)
    third = fleet.release("3.0.0", opset=15)
    fleet.admit()
    fleet.direct(first)
    agent = start_agent()
    agent.wait_for(MODEL, timeout_s=60)
    fleet.direct(second, standby=first)
    agent.wait_for(MODEL, version="2.0.0", timeout_s=60)
    probing, released = threading.Event(), threading.Event()

    def stuck(*_: object) -> Verdict:
        probing.set()
        released.wait(120)
        return Verdict(None, "")

    monkeypatch.setattr(Prober, "probe", stuck)
    try:
        fleet.direct(third, standby=first)
        assert probing.wait(60)
        fleet.direct(first, standby=first)
        agent.wait_for(MODEL, version="1.0.0", timeout_s=60)
    finally:
        released.set()


def test_restart_answers_before_the_broker_is_there(
    fleet: ToyFleet, start_agent: StartAgent
) -> None:
    first = fleet.release("1.0.0")
    fleet.admit()
    fleet.direct(first)
    agent = start_agent()
    agent.wait_for(MODEL, timeout_s=60)
    fleet.wait_until(lambda: is_in(fleet, Phase.SUCCEEDED, first.digest))
    agent.stop()
    with pytest.raises(NoModel):
        agent.model(MODEL).predict(INPUTS)
    fleet.wait_for_presence(online=False)
    fleet.requests.clear()
    again = start_agent()
    assert again.model(MODEL).predict(INPUTS).release == first.digest
    assert again.model(MODEL).release == ("1.0.0", first.digest)
    assert fleet.requests == []


def test_disabled_model_stays_disabled_over_a_restart(
    fleet: ToyFleet, start_agent: StartAgent
) -> None:
    first = fleet.release("1.0.0")
    fleet.admit()
    fleet.direct(first)
    agent = start_agent()
    agent.wait_for(MODEL, timeout_s=60)
    fleet.direct("disabled")
    fleet.wait_until(lambda: is_in(fleet, Phase.ROLLED_BACK, "disabled"))
    with pytest.raises(ModelDisabled):
        agent.model(MODEL).predict(INPUTS)
    agent.stop()
    again = start_agent()
    with pytest.raises(ModelDisabled):
        again.model(MODEL).predict(INPUTS)
    assert again.model(MODEL).release is None


def test_broken_release_is_rejected_with_its_reason_and_the_old_one_answers(
    fleet: ToyFleet, start_agent: StartAgent
) -> None:
    first, broken = fleet.release("1.0.0"), fleet.release("2.0.0", model=b"not a model")
    fleet.admit()
    fleet.direct(first)
    agent = start_agent()
    agent.wait_for(MODEL, timeout_s=60)
    fleet.direct(broken, standby=first)
    fleet.wait_until(lambda: is_in(fleet, Phase.REJECTED, broken.digest))
    model = last(fleet)
    assert model is not None
    assert model.reason is Reason.BROKEN_MODEL
    assert agent.model(MODEL).predict(INPUTS).release == first.digest


def test_damaged_artifact_is_fetched_anew_after_a_restart(
    fleet: ToyFleet, start_agent: StartAgent, tmp_path: Path
) -> None:
    first = fleet.release("1.0.0")
    fleet.admit()
    fleet.direct(first)
    agent = start_agent()
    agent.wait_for(MODEL, timeout_s=60)
    agent.stop()
    for path in (tmp_path / "device" / "artifacts").iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    again = start_agent()
    assert again.wait_for(MODEL, timeout_s=60).digest == first.digest
    fleet.wait_until(lambda: is_in(fleet, Phase.SUCCEEDED, first.digest))
    assert again.model(MODEL).predict(INPUTS).release == first.digest


def test_lost_record_does_not_stop_the_device(
    fleet: ToyFleet, start_agent: StartAgent, tmp_path: Path
) -> None:
    first = fleet.release("1.0.0")
    fleet.admit()
    fleet.direct(first)
    agent = start_agent()
    agent.wait_for(MODEL, timeout_s=60)
    agent.stop()
    for name in ("record", "record.previous"):
        (tmp_path / "device" / name).write_bytes(b"\x00" * 100)
    fleet.requests.clear()
    again = start_agent()
    assert again.wait_for(MODEL, timeout_s=60).digest == first.digest
    files = [path for path, _ in fleet.requests if not path.startswith("/v1/trust/")]
    assert files == [], "what lies in the store is not fetched again"


def test_telemetry_survives_a_server_that_does_not_acknowledge(
    fleet: ToyFleet, start_agent: StartAgent
) -> None:
    first = fleet.release("1.0.0")
    fleet.admit()
    fleet.direct(first)
    fleet.acknowledging = False
    agent = start_agent()
    agent.wait_for(MODEL, timeout_s=60)
    for _ in range(7):
        agent.model(MODEL).predict(INPUTS)
    agent.stop()
    fleet.wait_for_presence(online=False)
    session = fleet.progress[-1].session
    fleet.reports.clear()
    fleet.acknowledging = True
    start_agent()
    fleet.wait_until(
        lambda: (
            sum(w.predictions for r in fleet.reports if r.session == session for w in r.windows)
            >= 7
        )
    )


def test_lost_broker_is_found_again(fleet: ToyFleet, start_agent: StartAgent) -> None:
    first = fleet.release("1.0.0")
    fleet.admit()
    fleet.direct(first)
    agent = start_agent()
    agent.wait_for(MODEL, timeout_s=60)
    before = fleet.wait_for_presence(online=True)
    fleet.drop_devices()
    fleet.wait_until(
        lambda: fleet.presences[-1].online and fleet.presences[-1].birth != before.birth
    )
    assert agent.model(MODEL).predict(INPUTS).release == first.digest


def test_two_agents_in_one_folder(
    start_agent: StartAgent, tmp_path: Path, workshop: Workshop
) -> None:
    start_agent()
    second = Agent.open(tmp_path / "device", workshop=workshop)
    with pytest.raises(StartFailed):
        second.start()
    second.stop()
