"""Kill points of the core: whenever the process dies, the device has a working model again."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.core import effects as do
from device_agent.core.transitions import TABLE, UNDERWAY, Trigger, advance, diagram
from fleet_contract.errors import Reason
from fleet_contract.messages.progress import Phase
from fleet_contract.trust.directive import Activation, ReleaseRef


def ref(letter: str) -> ReleaseRef:
    return ReleaseRef(f"manifests/digits/{letter * 64}.json", letter * 64)


A, B = ref("a"), ref("b")


def run(device: Any, action: Any) -> bool:
    """Do it; after a kill, boot again and say so."""
    try:
        action()
        return False
    except Exception as death:
        if type(death).__name__ != "Killed":
            raise
        device.boot()
        return True


def restart(device: Any) -> None:
    device.boot()
    device.connect()


@pytest.mark.parametrize("kill_after", range(40))
@pytest.mark.parametrize("back", [False, True])
def test_killed_at_every_effect_of_an_upgrade_and_a_rollback(
    on_a: Any, authority: Any, kill_after: int, back: bool
) -> None:
    def upgrade() -> None:
        on_a.direct(authority.to_arm(B))
        on_a.wait(1000)

    def rollback() -> None:
        on_a.direct(authority.directive())

    if back:
        upgrade()
    on_a.kill_after = kill_after
    killed = run(on_a, rollback if back else upgrade)
    on_a.kill_after = None
    if killed:
        assert on_a.running in (A.digest, B.digest), "a working model, whatever happened"
        on_a.connect()
        for _ in range(4):
            on_a.wait(2_000)
    assert on_a.running == (A.digest if back else B.digest), "and it gets where it should"


def test_every_kill_point_was_reached(on_a: Any, authority: Any) -> None:
    on_a.direct(authority.to_arm(B))
    on_a.wait(1000)
    on_a.direct(authority.directive())
    assert len(on_a.performed) < 40, "the enumeration above covers every effect"


@pytest.mark.parametrize("phase", sorted(UNDERWAY))
def test_killed_in_each_phase(on_a: Any, authority: Any, phase: Phase) -> None:
    """One case for every phase in which something is under way."""
    holds: dict[Phase, type] = {
        Phase.DOWNLOADING: do.Fetch,
        Phase.VERIFYING: do.Probe,
        Phase.ACTIVATING: do.Activate,
    }
    changes: dict[Phase, dict[str, Any]] = {
        Phase.QUEUED: {},
        Phase.NOTIFIED: {"spread_ms": 10**9},
        Phase.STAGED: {"activation": Activation.STAGE_ONLY},
        Phase.SHADOWING: {"activation": Activation.SHADOW},
    }
    if phase is Phase.QUEUED:
        on_a.command_stop(authority.stop(True))
    if phase in holds:
        on_a.hold = {holds[phase]}
    on_a.direct(authority.to_arm(B, **changes.get(phase, {})))
    assert on_a.is_in(phase)
    on_a.hold = set()
    restart(on_a)
    assert on_a.running == (B.digest if phase is Phase.SOAKING else A.digest)
    on_a.command_stop(authority.stop(False))
    on_a.direct(authority.to_arm(B))
    for _ in range(4):
        on_a.wait(2_000)
    assert on_a.running == B.digest


def test_release_that_takes_the_agent_down_twice_is_given_up(on_a: Any, authority: Any) -> None:
    on_a.direct(authority.to_arm(B))
    assert on_a.is_in(Phase.SOAKING)
    restart(on_a)
    assert on_a.running == B.digest, "one restart may be a power cut"
    restart(on_a)
    assert (on_a.running, on_a.phase, on_a.reason) == (A.digest, Phase.FAILED, Reason.RESTARTED)
    on_a.wait(60_000)
    assert on_a.running == A.digest


def test_store_lost_the_active_release(on_b: Any) -> None:
    on_b.files.discard(B.digest)
    on_b.boot()
    assert on_b.running == A.digest, "the standby takes over"
    on_b.connect()
    assert on_b.running == B.digest, "fetched anew"


def test_store_lost_everything(on_b: Any) -> None:
    on_b.files.clear()
    restart(on_b)
    for _ in range(4):
        on_b.wait(2_000)
    assert on_b.running, "fetched anew"


def test_restart_without_network_keeps_the_model(on_b: Any) -> None:
    on_b.boot()
    assert (on_b.running, on_b.standby) == (B.digest, A.digest)


def test_restart_after_the_directive_expired_keeps_the_model(on_b: Any) -> None:
    on_b.now_ms += 10**10
    restart(on_b)
    assert on_b.running == B.digest


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["to_a", "to_b", "shadow_b", "stop", "lift", "wait", "restart", "break", "mend"]
        ),
        st.one_of(st.none(), st.integers(0, 6)),
    ),
    min_size=1,
    max_size=25,
)


@given(actions=ACTIONS)
def test_device_left_without_a_model(
    device_on_a: Any, actions: list[tuple[str, int | None]]
) -> None:
    """Whatever is ordered, breaks or dies, in any order: once it had a model, it has one."""
    device, authority = device_on_a()
    orders = {
        "to_a": lambda: device.direct(authority.directive()),
        "to_b": lambda: device.direct(authority.to_arm(B)),
        "shadow_b": lambda: device.direct(authority.to_arm(B, activation=Activation.SHADOW)),
        "stop": lambda: device.command_stop(authority.stop(True)),
        "lift": lambda: device.command_stop(authority.stop(False)),
        "wait": lambda: device.wait(2_500),
        "restart": lambda: restart(device),
        "break": lambda: device.broken.update({B.digest: Reason.PROBE_CRASHED}),
        "mend": device.broken.clear,
    }
    for name, kill_after in actions:
        device.kill_after = kill_after
        if run(device, orders[name]):
            assert device.running in (A.digest, B.digest)
            device.connect()
        device.kill_after = None
        assert device.running in (A.digest, B.digest)
        record = device.state.record.models["digits"]
        assert record.active_digest == device.running, "what is reported is what runs"
    # At peace again, the device reaches what is wanted.
    device.broken.clear()
    device.command_stop(authority.stop(False))
    device.direct(
        authority.to_arm(B, retry=device.state.record.models["digits"].directive.retry + 1)
    )
    for _ in range(8):
        device.wait(60_000)
    assert device.running == B.digest


def test_diagram_in_the_docs_is_the_table(pytestconfig: pytest.Config) -> None:
    page = pytestconfig.rootpath / "docs" / "internals" / "device-deployment.md"
    assert diagram() in page.read_text(encoding="utf-8")


def test_impossible_transition_passes_unnoticed() -> None:
    for phase in Phase:
        for trigger in Trigger:
            if (phase, trigger) in TABLE:
                assert advance(phase, trigger) is TABLE[phase, trigger]
            else:
                with pytest.raises(Exception, match=trigger.value):
                    advance(phase, trigger)
