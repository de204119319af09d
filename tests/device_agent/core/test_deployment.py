"""What a device does with what is wanted: forward with care, back at once."""

from typing import Any

import pytest

from device_agent.core import effects as do
from device_agent.core import events
from device_agent.core.deployment import FETCH_ATTEMPTS
from device_agent.core.state import DISABLED
from fleet_contract.errors import Reason
from fleet_contract.messages.progress import Phase
from fleet_contract.trust.directive import Activation, ReleaseRef, Starts


def ref(letter: str) -> ReleaseRef:
    return ReleaseRef(f"manifests/digits/{letter * 64}.json", letter * 64)


A, B, C = ref("a"), ref("b"), ref("c")
MODEL = "digits"


def kinds(device: Any) -> list[str]:
    skip = (do.Persist, do.Publish, do.WakeAt, do.ReportEvery)
    return [type(item).__name__ for item in device.performed if not isinstance(item, skip)]


def test_success_declared_only_after_the_soak(device: Any, authority: Any) -> None:
    device.direct(authority.directive())
    assert device.running == A.digest
    assert device.is_in(Phase.SOAKING)
    device.wait(999)
    assert device.is_in(Phase.SOAKING)
    device.wait(1)
    assert device.is_in(Phase.SUCCEEDED)
    assert device.progress[-1].models[0].active == A.digest


def test_rollback_needs_no_download_and_no_model_read(on_b: Any, authority: Any) -> None:
    on_b.direct(authority.directive())
    assert kinds(on_b) == ["Activate"]
    assert isinstance(on_b.performed[0], do.Persist), "the acceptance is stored first"
    assert on_b.running == A.digest
    assert on_b.is_in(Phase.ROLLED_BACK)


def test_rollback_while_the_broker_says_stop(on_b: Any, authority: Any) -> None:
    on_b.command_stop(authority.stop(True))
    on_b.direct(authority.directive())
    assert on_b.running == A.digest


def test_forward_move_while_stopped(on_a: Any, authority: Any) -> None:
    on_a.command_stop(authority.stop(True))
    on_a.direct(authority.to_arm(B))
    assert kinds(on_a) == []
    assert (on_a.phase, on_a.reason) == (Phase.QUEUED, Reason.STOPPED)
    on_a.command_stop(authority.stop(False))
    assert on_a.running == B.digest


def test_stop_between_staging_and_activation(on_a: Any, authority: Any) -> None:
    on_a.direct(authority.to_arm(B, activation=Activation.STAGE_ONLY))
    assert on_a.is_in(Phase.STAGED)
    on_a.command_stop(authority.stop(True))
    on_a.direct(authority.to_arm(B))
    assert on_a.running == A.digest
    on_a.command_stop(authority.stop(False))
    assert on_a.running == B.digest


def test_forward_move_before_assignment_and_stop_are_here(on_a: Any, authority: Any) -> None:
    on_a.feed(events.Disconnected())
    on_a.retained["fleet/v1/home/cohort/lab/digits"] = authority.to_arm(B)
    on_a.feed(events.Connected())
    on_a.feed(events.Received(*on_a.retained.popitem()))
    assert on_a.running == A.digest
    assert on_a.is_in(Phase.QUEUED)
    for topic, payload in list(on_a.retained.items()):
        on_a.feed(events.Received(topic, payload))
    assert on_a.running == B.digest


def test_paused_starts_leave_those_alone_who_started(on_a: Any, authority: Any) -> None:
    on_a.hold = {do.Fetch}
    on_a.direct(authority.to_arm(B))
    assert on_a.is_in(Phase.DOWNLOADING)
    on_a.direct(authority.to_arm(B, starts=Starts.PAUSED))
    assert on_a.is_in(Phase.DOWNLOADING)
    on_a.catch_up()
    assert on_a.running == B.digest


def test_paused_and_canceled_starts_hold_those_who_have_not(on_a: Any, authority: Any) -> None:
    on_a.direct(authority.to_arm(B, starts=Starts.PAUSED))
    assert on_a.is_in(Phase.QUEUED)
    on_a.direct(authority.to_arm(B, starts=Starts.CANCELED))
    assert on_a.is_in(Phase.CANCELED)
    assert kinds(on_a) == []


def test_everybody_downloads_in_the_same_second(on_a: Any, authority: Any) -> None:
    on_a.direct(authority.to_arm(B, spread_ms=10_000_000))
    assert on_a.is_in(Phase.NOTIFIED)
    due = on_a.state.record.models[MODEL].due_ms
    assert on_a.now_ms < due <= on_a.now_ms + 10_000_000
    on_a.wait(due - on_a.now_ms - 1)
    assert on_a.is_in(Phase.NOTIFIED)
    on_a.wait(1)
    assert on_a.running == B.digest


def test_shadow_never_answers(on_a: Any, authority: Any) -> None:
    on_a.direct(authority.to_arm(B, activation=Activation.SHADOW))
    assert (on_a.running, on_a.shadow, on_a.phase) == (A.digest, B.digest, Phase.SHADOWING)
    on_a.direct(authority.to_arm(B))
    assert (on_a.running, on_a.shadow) == (B.digest, "")
    assert kinds(on_a).count("Fetch") == 1, "what was shadowed is not fetched again"


def test_shadow_ends_when_the_device_leaves_the_arm(on_a: Any, authority: Any) -> None:
    on_a.direct(authority.to_arm(B, activation=Activation.SHADOW))
    on_a.direct(authority.directive())
    assert (on_a.running, on_a.shadow, on_a.phase) == (A.digest, "", Phase.CANCELED)


@pytest.mark.parametrize(
    ("reason", "phase"),
    [
        (Reason.NO_VARIANT, Phase.REJECTED),
        (Reason.GOLDEN_MISMATCH, Phase.REJECTED),
        (Reason.BROKEN_MODEL, Phase.REJECTED),
    ],
)
def test_bad_release_touches_nothing(
    on_a: Any, authority: Any, reason: Reason, phase: Phase
) -> None:
    on_a.broken[B.digest] = reason
    on_a.direct(authority.to_arm(B))
    assert (on_a.running, on_a.phase, on_a.reason) == (A.digest, phase, reason)
    on_a.wait(3_600_000)
    assert kinds(on_a).count("Fetch") == 1, "it is not tried again"
    assert on_a.progress[-1].models[0].reason is reason


def test_release_that_crashes_twice_is_held_off_until_retry_grows(
    on_a: Any, authority: Any
) -> None:
    on_a.broken[B.digest] = Reason.PROBE_CRASHED
    on_a.direct(authority.to_arm(B))
    assert on_a.is_in(Phase.NOTIFIED)
    on_a.wait(2_000)
    assert (on_a.phase, on_a.reason) == (Phase.FAILED, Reason.PROBE_CRASHED)
    on_a.direct(authority.directive())
    on_a.direct(authority.to_arm(B))
    assert (on_a.phase, on_a.reason) == (Phase.FAILED, Reason.QUARANTINED)
    del on_a.broken[B.digest]
    on_a.direct(authority.to_arm(B, retry=1))
    assert on_a.running == B.digest


def test_download_that_never_works_ends(on_a: Any, authority: Any) -> None:
    on_a.broken[B.digest] = Reason.DOWNLOAD_FAILED
    on_a.direct(authority.to_arm(B))
    for _ in range(FETCH_ATTEMPTS + 2):
        on_a.wait(60_000)
    assert (on_a.phase, on_a.reason) == (Phase.TIMED_OUT, Reason.DOWNLOAD_FAILED)
    assert kinds(on_a).count("Fetch") == FETCH_ATTEMPTS
    assert on_a.running == A.digest


def test_activation_that_fails_leaves_the_old_model(on_a: Any, authority: Any) -> None:
    on_a.broken[B.digest] = Reason.ACTIVATION_FAILED
    on_a.direct(authority.to_arm(B))
    on_a.wait(2_000)
    assert (on_a.running, on_a.phase) == (A.digest, Phase.FAILED)


def test_local_guard_reverts_without_asking_and_stays_reverted(on_b: Any, authority: Any) -> None:
    on_b.feed(events.GuardTripped(MODEL, B.digest, Reason.LOCAL_ERROR_RATE, "12% errors"))
    assert (on_b.running, on_b.phase, on_b.reason) == (
        A.digest,
        Phase.FAILED,
        Reason.LOCAL_ERROR_RATE,
    )
    on_b.direct(authority.to_arm(B))
    assert on_b.running == A.digest
    on_b.direct(authority.to_arm(B, retry=1))
    assert on_b.running == B.digest


def test_guard_on_a_release_that_is_gone(on_b: Any, authority: Any) -> None:
    on_b.direct(authority.directive())
    on_b.feed(events.GuardTripped(MODEL, B.digest, Reason.LOCAL_ERROR_RATE, "late"))
    assert on_b.running == A.digest


def test_disabled_takes_the_model_away_and_gives_it_back_warm(on_b: Any, authority: Any) -> None:
    on_b.direct(authority.directive(default=DISABLED))
    assert on_b.running == DISABLED
    assert on_b.state.record.models[MODEL].disabled
    on_b.direct(authority.to_arm(B))
    assert on_b.running == B.digest
    assert kinds(on_b) == ["Disable", "Activate"]


def test_pin_stands_above_the_directive_and_block_forbids(on_a: Any, authority: Any) -> None:
    on_a.assign(authority.assignment(pins={MODEL: C}))
    assert on_a.running == C.digest
    on_a.direct(authority.to_arm(B))
    assert on_a.running == C.digest
    on_a.assign(authority.assignment(blocks={MODEL: [B.digest]}))
    assert on_a.running == A.digest


def test_rollback_overtakes_a_download(on_a: Any, authority: Any) -> None:
    on_a.hold = {do.Fetch}
    on_a.direct(authority.to_arm(B))
    on_a.direct(authority.directive())
    assert on_a.is_in(Phase.CANCELED)
    assert on_a.effects_of(do.CancelFetch) == [do.CancelFetch(MODEL, B.digest)]
    on_a.feed(events.Fetched(MODEL, B.digest, B.manifest, "2.0.0", 2))
    assert on_a.running == A.digest


def test_rollback_overtakes_an_activation(on_a: Any, authority: Any) -> None:
    on_a.hold = {do.Activate}
    on_a.direct(authority.to_arm(B))
    assert on_a.is_in(Phase.ACTIVATING)
    on_a.direct(authority.directive())
    on_a.catch_up()
    assert on_a.state.record.models[MODEL].active_digest == A.digest
    assert on_a.running == A.digest


def test_flash_fills_up_with_old_releases(device: Any, authority: Any) -> None:
    for letter in "abcdef":
        device.direct(authority.to_arm(ref(letter)))
        device.wait(1000)
    assert len(device.files) <= 3
    assert {"f" * 64, "e" * 64} <= device.files, "the running one and its standby stay"


def test_standby_is_dropped_only_when_the_directive_says_so(on_b: Any, authority: Any) -> None:
    assert on_b.standby == A.digest
    on_b.direct(authority.to_arm(B, standby=None))
    assert on_b.standby == ""
    assert A.digest in on_b.files, "its files stay for a later way back"
    on_b.direct(authority.directive())
    assert on_b.running == A.digest
