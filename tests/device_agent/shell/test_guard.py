"""The local guard: takes back what mostly fails, and nothing else."""

from device_agent.core.state import ModelState
from device_agent.inference.recorder import Figures
from device_agent.shell.guard import SPAN_MS, Guard
from fleet_contract.errors import Reason
from fleet_contract.messages.progress import Phase
from fleet_contract.trust.directive import ReleaseRef

A, B = (ReleaseRef("m", letter * 64) for letter in "ab")


def model(phase: Phase = Phase.SOAKING, *, active: ReleaseRef = B) -> ModelState:
    standby = A if active is B else B
    return ModelState("digits", phase=phase, target=B.digest, active=active, standby=standby)


def test_release_that_fails_is_taken_back_once() -> None:
    guard = Guard()
    assert guard.look(model(), Figures(B.digest, 0, 0), 0) is None
    tripped = guard.look(model(), Figures(B.digest, 30, 20), 1000)
    assert tripped is not None
    assert (tripped.digest, tripped.reason) == (B.digest, Reason.LOCAL_ERROR_RATE)
    assert guard.look(model(), Figures(B.digest, 60, 50), 2000) is None


def test_failing_from_the_first_call_is_noticed_at_the_first_look() -> None:
    assert Guard().look(model(), Figures(B.digest, 30, 30), 0) is not None


def test_few_calls_prove_nothing() -> None:
    assert Guard().look(model(), Figures(B.digest, 19, 19), 0) is None


def test_old_calls_do_not_excuse_new_failures() -> None:
    guard = Guard()
    guard.look(model(), Figures(B.digest, 10_000, 0), 0)
    assert guard.look(model(), Figures(B.digest, 10_000, 0), SPAN_MS) is None
    guard.look(model(), Figures(B.digest, 10_000, 0), SPAN_MS + 1)
    assert guard.look(model(), Figures(B.digest, 10_030, 30), SPAN_MS + 2) is not None


def test_fallback_is_never_taken_back() -> None:
    guard = Guard()
    for phase in (Phase.FAILED, Phase.ROLLED_BACK):
        assert guard.look(model(phase, active=A), Figures(A.digest, 100, 100), 0) is None


def test_nothing_to_go_back_to() -> None:
    alone = ModelState("digits", phase=Phase.SOAKING, target=B.digest, active=B)
    assert Guard().look(alone, Figures(B.digest, 100, 100), 0) is None


def test_release_that_comes_back_is_judged_anew() -> None:
    guard = Guard()
    assert guard.look(model(), Figures(B.digest, 30, 30), 0) is not None
    guard.look(model(Phase.FAILED, active=A), Figures(A.digest, 5, 0), 1000)
    assert guard.look(model(), Figures(B.digest, 30, 30), 2000) is not None


def test_figures_of_another_release_are_not_held_against_this_one() -> None:
    assert Guard().look(model(), Figures(A.digest, 100, 100), 0) is None
