"""Devices that stand still, run the wrong thing or none: one test for each way into it."""

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_agent.core import effects as do
from device_agent.core import events
from device_agent.core.state import read_record, write_record
from fleet_contract import codec, topics
from fleet_contract.errors import Reason, Refused
from fleet_contract.messages.progress import Phase
from fleet_contract.trust.directive import Activation, ReleaseRef, Starts

MODEL = "digits"


def ref(letter: str) -> ReleaseRef:
    return ReleaseRef(f"manifests/digits/{letter * 64}.json", letter * 64)


A, B, C = ref("a"), ref("b"), ref("c")


@pytest.fixture
def back_on_a(on_b: Any, authority: Any) -> Any:
    """A device that was rolled back from B to A, and so keeps B warm."""
    on_b.direct(authority.directive())
    assert (on_b.running, on_b.standby) == (A.digest, B.digest)
    on_b.performed.clear()
    return on_b


@pytest.mark.parametrize("activation", [Activation.SHADOW, Activation.STAGE_ONLY])
def test_shadow_of_the_standby_answers(
    back_on_a: Any, authority: Any, activation: Activation
) -> None:
    back_on_a.direct(authority.to_arm(B, activation=activation))
    assert back_on_a.running == A.digest
    assert back_on_a.effects_of(do.Activate) == []
    back_on_a.direct(authority.to_arm(B))
    assert (back_on_a.running, back_on_a.phase) == (B.digest, Phase.SOAKING)


def test_rollout_to_the_standby_passes_stop_and_pause(back_on_a: Any, authority: Any) -> None:
    back_on_a.command_stop(authority.stop(True))
    back_on_a.direct(authority.to_arm(B))
    assert (back_on_a.running, back_on_a.phase) == (A.digest, Phase.QUEUED)
    back_on_a.direct(authority.to_arm(B, starts=Starts.PAUSED))
    back_on_a.command_stop(authority.stop(False))
    assert back_on_a.running == A.digest
    back_on_a.direct(authority.directive(default=B))
    assert back_on_a.running == B.digest


def test_rollback_to_what_is_no_longer_warm_waits_for_a_lifted_stop(
    on_b: Any, authority: Any
) -> None:
    on_b.direct(authority.to_arm(B, standby=None))
    assert on_b.standby == ""
    on_b.command_stop(authority.stop(True))
    on_b.direct(authority.directive())
    assert (on_b.running, on_b.phase) == (A.digest, Phase.ROLLED_BACK)


def test_rollback_is_given_up_because_the_network_was_away(on_b: Any, authority: Any) -> None:
    on_b.built.discard(A.digest)
    on_b.files.discard(A.digest)
    on_b.broken[A.digest] = Reason.DOWNLOAD_FAILED
    on_b.direct(authority.directive())
    on_b.live(3_600_000)
    assert on_b.running == B.digest
    on_b.broken.clear()
    on_b.live(120_000)
    assert on_b.running == A.digest


def test_first_model_is_given_up_because_the_network_was_away(device: Any, authority: Any) -> None:
    device.broken[A.digest] = Reason.DOWNLOAD_FAILED
    device.direct(authority.directive())
    device.live(3_600_000)
    device.broken.clear()
    device.live(120_000)
    assert device.running == A.digest


@pytest.mark.parametrize("starts", [Starts.PAUSED, Starts.CANCELED])
def test_newcomer_to_a_halted_rollout_has_no_model(
    device: Any, authority: Any, starts: Starts
) -> None:
    device.direct(authority.to_arm(B, starts=starts))
    assert device.running == A.digest


def test_newcomer_to_a_shadow_stage_has_no_model(device: Any, authority: Any) -> None:
    device.direct(authority.to_arm(B, activation=Activation.SHADOW))
    device.live(5_000)
    assert (device.running, device.shadow) == (A.digest, B.digest)


def test_device_that_missed_a_rollback_goes_on_in_the_shadow_stage(
    on_b: Any, authority: Any
) -> None:
    on_b.direct(authority.to_arm(B, activation=Activation.SHADOW, retry=1))
    on_b.live(5_000)
    assert (on_b.running, on_b.shadow) == (A.digest, B.digest)


def test_forward_move_by_the_directive_of_an_earlier_connection(on_a: Any, authority: Any) -> None:
    on_a.command_stop(authority.stop(True))
    on_a.direct(authority.to_arm(B))
    on_a.feed(events.Disconnected())
    directive = on_a.retained.pop(topics.directive("home", "lab", MODEL))
    on_a.retained[topics.stop("home")] = authority.stop(False)
    on_a.connect()
    assert (on_a.running, on_a.phase) == (A.digest, Phase.QUEUED)
    on_a.feed(events.Received(topics.directive("home", "lab", MODEL), directive))
    assert on_a.running == B.digest


def test_expired_directive_starts_something_new(on_a: Any, authority: Any) -> None:
    on_a.command_stop(authority.stop(True))
    on_a.direct(authority.to_arm(B, expires_ms=on_a.now_ms + 1_000))
    on_a.wait(2_000)
    on_a.command_stop(authority.stop(False))
    assert on_a.running == A.digest
    on_a.direct(authority.to_arm(B))
    assert on_a.running == B.digest


def test_soak_without_a_directive_wakes_for_ever(on_a: Any, authority: Any) -> None:
    on_a.direct(authority.to_arm(B))
    on_a.assign(authority.assignment(cohort="other"))
    on_a.live(10_000)
    assert on_a.is_in(Phase.SUCCEEDED)


@pytest.mark.parametrize("lost", [do.Fetch, do.Probe, do.Activate])
def test_answer_that_never_comes(on_a: Any, authority: Any, lost: type) -> None:
    on_a.hold = {lost}
    on_a.direct(authority.to_arm(B, expires_ms=on_a.now_ms + 10**9))
    on_a.hold = set()
    on_a.held.clear()
    on_a.live(25 * 3_600_000)
    assert on_a.running == B.digest


def test_revert_whose_standby_is_cold_is_not_tried_again(on_b: Any) -> None:
    on_b.built.discard(A.digest)
    on_b.feed(events.GuardTripped(MODEL, B.digest, Reason.LOCAL_ERROR_RATE, "errors"))
    assert on_b.running == B.digest
    on_b.live(120_000)
    assert (on_b.running, on_b.reason) == (A.digest, Reason.LOCAL_ERROR_RATE)


def test_revert_that_a_power_cut_undid(on_b: Any) -> None:
    on_b.hold = {do.Activate}
    on_b.feed(events.GuardTripped(MODEL, B.digest, Reason.LOCAL_ERROR_RATE, "errors"))
    on_b.hold = set()
    on_b.boot()
    assert (on_b.running, on_b.reason) == (A.digest, Reason.LOCAL_ERROR_RATE)


def test_quarantined_standby_is_activated(on_b: Any, authority: Any) -> None:
    on_b.feed(events.GuardTripped(MODEL, B.digest, Reason.LOCAL_ERROR_RATE, "errors"))
    on_b.direct(authority.to_arm(C, starts=Starts.PAUSED))
    on_b.direct(authority.directive(default=B, standby=B))
    assert (on_b.running, on_b.reason) == (A.digest, Reason.QUARANTINED)


def test_quarantine_and_halted_rollout_stand_above_a_pin(on_b: Any, authority: Any) -> None:
    on_b.feed(events.GuardTripped(MODEL, B.digest, Reason.LOCAL_ERROR_RATE, "errors"))
    on_b.direct(authority.to_arm(C, starts=Starts.CANCELED))
    on_b.assign(authority.assignment(pins={MODEL: B}))
    assert on_b.running == B.digest
    on_b.feed(events.GuardTripped(MODEL, B.digest, Reason.LOCAL_ERROR_RATE, "errors"))
    assert on_b.running == B.digest


def test_pin_of_a_model_without_directive(device: Any, authority: Any) -> None:
    device.assign(authority.assignment(pins={MODEL: C}))
    assert device.running == C.digest


def test_release_that_takes_the_agent_down_while_it_loads(on_b: Any) -> None:
    for _ in range(2):
        on_b.kill_after = None
        on_b.state = type(on_b.state)(read_record(on_b.disk))
        load(on_b, deadly=B.digest)
    on_b.boot()
    assert (on_b.running, on_b.phase, on_b.reason) == (A.digest, Phase.FAILED, Reason.RESTARTED)
    on_b.connect()
    on_b.live(60_000)
    assert on_b.running == A.digest


def load(device: Any, deadly: str) -> None:
    """Boot; the process dies while it loads a release."""
    perform = device.perform

    def fragile(effect: do.Effect) -> Any:
        if isinstance(effect, do.Load) and effect.active and effect.active.digest == deadly:
            raise SystemError("died")
        return perform(effect)

    device.perform = fragile
    with pytest.raises(SystemError):
        device.boot()
    device.perform = perform


def test_candidate_that_takes_the_agent_down_while_it_is_tried(on_a: Any, authority: Any) -> None:
    on_a.hold = {do.Probe}
    on_a.direct(authority.to_arm(B))
    for _ in range(2):
        assert on_a.is_in(Phase.VERIFYING)
        on_a.boot()
        on_a.connect()
        on_a.live(3_000)
    assert (on_a.phase, on_a.reason) == (Phase.FAILED, Reason.RESTARTED)


def test_failure_that_comes_late_strikes_what_runs(on_b: Any) -> None:
    on_b.feed(events.Failed(MODEL, B.digest, Reason.PROBE_TIMED_OUT, "late"))
    assert on_b.running == B.digest
    assert on_b.state.record.models[MODEL].active_digest == B.digest


def test_clock_set_back_holds_a_start_up(on_a: Any, authority: Any) -> None:
    on_a.direct(authority.to_arm(B, spread_ms=10_000))
    on_a.now_ms -= 365 * 86_400_000
    on_a.feed(events.Tick())
    on_a.live(20_000)
    assert (on_a.running, on_a.phase) == (B.digest, Phase.SUCCEEDED)


def test_unanswered_question_for_the_keyset_is_asked_once(on_a: Any, authority: Any) -> None:
    stranger = type(authority)()
    stranger.director = Ed25519PrivateKey.from_private_bytes(b"\x05" * 32)
    on_a.feed(
        events.Received(topics.directive("home", "lab", MODEL), stranger.to_arm(B, epoch=999))
    )
    on_a.live(60_000)
    assert 2 <= len(on_a.effects_of(do.FetchKeyset)) <= 4
    on_a.live(24 * 3_600_000)
    assert len(on_a.effects_of(do.FetchKeyset)) < 200


def test_record_of_a_newer_agent_costs_the_model(on_b: Any) -> None:
    parts = codec.decode_json(write_record(on_b.state.record), dict, limit_bytes=1 << 20)
    parts["models"][MODEL].update(phase="levitating", reason="mood", directive={"wire": 9})
    parts["stop"] = {"form": "of another age"}
    parts["version"] = 2
    record = read_record(codec.encode_json(parts))
    model = record.models[MODEL]
    assert (model.active_digest, model.standby_digest) == (B.digest, A.digest)
    assert record.acceptances == on_b.state.record.acceptances
    for damaged in (b"{}", b"[]", b'{"models":3}', b"\xff"):
        with pytest.raises(Refused):
            read_record(damaged)


def test_wandering_device_remembers_every_cohort(on_a: Any, authority: Any) -> None:
    for number in range(300):
        cohort = f"cohort-{number}"
        on_a.assign(authority.assignment(cohort=cohort))
        on_a.direct(authority.directive(cohort=cohort), cohort)
    assert len(on_a.state.record.acceptances) <= 256
    assert "cohort-299/digits" in on_a.state.record.acceptances
    assert on_a.running == A.digest


def test_rollout_of_what_was_rolled_back_to_never_succeeds(on_b: Any, authority: Any) -> None:
    on_b.direct(authority.directive())
    assert on_b.is_in(Phase.ROLLED_BACK)
    on_b.direct(authority.to_arm(A, default=C, standby=C))
    on_b.live(1_000)
    assert (on_b.running, on_b.phase) == (A.digest, Phase.SUCCEEDED)
