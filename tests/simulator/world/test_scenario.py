"""The whole story in virtual time: the cores are pure, and the fleet ends where it should."""

import pytest

from fleet_server.rollouts.decide import Kind
from fleet_server.rollouts.gates.result import Verdict
from fleet_server.rollouts.states import RolloutState
from simulator.world.scenario import Outcome, run

DEVICES = 300


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return run(seed=7, devices=DEVICES)


@pytest.mark.slow
def test_good_release_is_stopped(outcome: Outcome) -> None:
    good = outcome.chapters[1]
    assert good.state is RolloutState.COMPLETED, [item.reason for item in good.decisions]
    assert good.reached_devices == DEVICES


@pytest.mark.slow
def test_bad_release_reaches_more_than_the_canaries(outcome: Outcome) -> None:
    bad = outcome.chapters[2]
    assert bad.state is RolloutState.ROLLED_BACK
    assert bad.reached_devices == DEVICES // 100, "found out at 1% of the fleet"
    last = next(item for item in bad.decisions if item.kind is Kind.ROLL_BACK)
    assert [gate.guardrail.value for gate in last.gates if gate.verdict is Verdict.FAIL] == [
        "output_drift"
    ]
    assert outcome.devices_per_release == {"1.1.0": DEVICES}


@pytest.mark.slow
def test_rollback_takes_longer_than_a_second(outcome: Outcome) -> None:
    rollback_ms = outcome.chapters[2].rollback_ms
    assert rollback_ms is not None
    assert rollback_ms < 1_000


@pytest.mark.slow
def test_device_without_a_model(outcome: Outcome) -> None:
    assert outcome.predictions > 100 * DEVICES
    assert outcome.without_model == 0


@pytest.mark.slow
def test_one_seed_tells_two_stories(outcome: Outcome) -> None:
    again = run(seed=7, devices=DEVICES)
    assert again.trace == outcome.trace
    assert again == outcome


def test_two_seeds_tell_one_story() -> None:
    assert run(seed=1, devices=20).trace != run(seed=2, devices=20).trace
