"""Whatever is ordered, breaks, is lost or dies, in any order: a search for what goes wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from device_agent.core import effects as do
from device_agent.core import events
from device_agent.core.state import DISABLED, read_record, write_record
from fleet_contract.errors import Reason
from fleet_contract.messages.progress import Phase
from fleet_contract.trust.directive import Activation, ReleaseRef, Starts

MODEL, COHORT, OTHER = "digits", "lab", "other"
YEAR_MS = 365 * 86_400_000


def ref(letter: str) -> ReleaseRef:
    return ReleaseRef(f"manifests/digits/{letter * 64}.json", letter * 64)


RELEASES = [ref(letter) for letter in "abcd"]
A, B = RELEASES[:2]
RELEASE = st.sampled_from(RELEASES)
CHANGES = st.fixed_dictionaries(
    {
        "default": st.one_of(RELEASE, RELEASE, st.none(), st.just(DISABLED)),
        "activation": st.sampled_from([Activation.ACTIVE, *Activation]),
        "starts": st.sampled_from([Starts.OPEN, *Starts]),
        "standby": st.one_of(RELEASE, st.none()),
        "retry": st.integers(0, 3),
        "spread_ms": st.sampled_from([0, 0, 60_000]),
        "lasts_ms": st.sampled_from([YEAR_MS, YEAR_MS, 1_500]),
    }
)
ORDER = st.tuples(st.just("order"), st.sampled_from([COHORT, COHORT, OTHER]), RELEASE, CHANGES)
TO_ARM = st.tuples(st.just("forward"), RELEASE)
BACK = st.tuples(st.just("back"), RELEASE)
ASSIGN = st.tuples(
    st.just("assign"),
    st.sampled_from([COHORT, COHORT, OTHER]),
    st.one_of(st.none(), st.none(), RELEASE),
    st.lists(RELEASE, max_size=2),
)
STOP = st.tuples(st.just("stop"), st.booleans())
LIVE = st.tuples(st.just("live"), st.sampled_from([0, 900, 3_000, 61_000, 1_000_000]))
JUMP = st.tuples(st.just("jump"), st.sampled_from([-YEAR_MS, -30_000, 90_000]))
BREAK = st.tuples(
    st.just("break"),
    RELEASE,
    st.sampled_from(
        [
            Reason.PROBE_CRASHED,
            Reason.ACTIVATION_FAILED,
            Reason.DOWNLOAD_FAILED,
            Reason.BAD_SIGNATURE,
        ]
    ),
)
MEND = st.tuples(st.just("mend"))
RESTART = st.tuples(st.just("restart"), st.booleans())
OFFLINE = st.tuples(st.just("offline"))
ONLINE = st.tuples(st.just("online"))
GUARD = st.tuples(st.just("guard"))
LOSE = st.tuples(st.just("lose"), st.integers(1, 3))
LATE = st.tuples(
    st.just("late"), RELEASE, st.sampled_from(["fetched", "probed", "failed", "timed_out"])
)
FLASH = st.tuples(st.just("flash"), RELEASE)
HOLD = st.tuples(st.just("hold"), st.sampled_from([do.Fetch, do.Probe, do.Activate]))
CATCH_UP = st.tuples(st.just("catch_up"))
STEPS = st.lists(
    st.tuples(
        st.one_of(
            *(ORDER, ORDER, TO_ARM, TO_ARM, BACK, ASSIGN, STOP, LIVE, LIVE, JUMP, BREAK, MEND),
            *(RESTART, RESTART, OFFLINE, ONLINE, GUARD, LOSE, LATE, FLASH, HOLD, CATCH_UP),
        ),
        st.one_of(st.none(), st.none(), st.integers(0, 8)),
    ),
    max_size=30,
)


@dataclass
class Life:
    """One device's life; ``may_have_none`` says that its flash lost what it ran."""

    device: Any
    authority: Any
    may_have_none: bool = False

    # -- what can happen -----------------------------------------------------------------------

    def order(self, cohort: str, arm: ReleaseRef, changes: dict[str, Any]) -> None:
        changes = dict(changes)
        lasts_ms = changes.pop("lasts_ms")
        now_ms = max(self.device.now_ms, self.device.state.record.time_floor_ms)
        payload = self.authority.to_arm(
            arm, cohort=cohort, issued_ms=now_ms, expires_ms=now_ms + lasts_ms, **changes
        )
        self.device.direct(payload, cohort)

    def forward(self, arm: ReleaseRef) -> None:
        self.order(COHORT, arm, {**PEACE, "retry": 3})

    def back(self, to: ReleaseRef) -> None:
        self.order(COHORT, to, {**PEACE, "retry": 3, "default": to, "standby": to})

    def assign(self, cohort: str, pin: ReleaseRef | None, blocks: list[ReleaseRef]) -> None:
        pins = {MODEL: pin} if pin is not None else {}
        listed = {MODEL: [item.digest for item in blocks]}
        self.device.assign(self.authority.assignment(cohort=cohort, pins=pins, blocks=listed))

    def stop(self, stopped: bool) -> None:
        self.device.command_stop(self.authority.stop(stopped))

    def live(self, duration_ms: int) -> None:
        self.device.live(duration_ms)

    def jump(self, by_ms: int) -> None:
        self.device.now_ms += by_ms

    def restart(self, connect: bool) -> None:
        device = self.device
        record = read_record(device.disk)
        known = record.models[MODEL]
        names = {known.active_digest, known.standby_digest} - {""}
        # What seems to take the agent down while it loads goes through the probe again.
        accused = known.active_digest == record.loading != "" and known.standby is None
        self.may_have_none = accused or not names & device.files
        device.hold, device.held = set(), []
        device.boot()
        if connect:
            device.connect()

    def offline(self) -> None:
        if self.device.state.live.connected:
            self.device.feed(events.Disconnected())

    def online(self) -> None:
        if not self.device.state.live.connected:
            self.device.connect()

    def guard(self) -> None:
        digest = self.device.state.record.models[MODEL].active_digest
        self.device.feed(events.GuardTripped(MODEL, digest, Reason.LOCAL_ERROR_RATE, "errors"))

    def lose(self, count: int) -> None:
        self.device.losing = count

    def late(self, release: ReleaseRef, kind: str) -> None:
        device, digest = self.device, release.digest
        if device.state.live.loading:
            return  # No answer outlives the process that asked.
        if kind == "fetched" and digest in device.files:
            device.feed(events.Fetched(MODEL, digest, release.manifest, "1.0.0", 1))
        elif kind == "probed" and digest in device.built:
            device.feed(events.Probed(MODEL, digest))
        elif kind == "failed":
            device.feed(events.Failed(MODEL, digest, Reason.DOWNLOAD_FAILED, "late"))
        elif kind == "timed_out":
            device.feed(events.Failed(MODEL, digest, Reason.PROBE_TIMED_OUT, "late"))

    def flash(self, release: ReleaseRef) -> None:
        self.device.files.discard(release.digest)

    def hold(self, kind: type) -> None:
        self.device.hold = {kind}

    def catch_up(self) -> None:
        self.device.catch_up()

    def mend(self) -> None:
        self.device.broken.clear()

    # -- what must hold ------------------------------------------------------------------------

    def act(self, step: tuple[Any, ...], kill_after: int | None) -> None:
        device = self.device
        actions: dict[str, Callable[..., None]] = {
            "break": lambda release, reason: device.broken.update({release.digest: reason})
        }
        name, *arguments = step
        device.performed.clear()
        device.kill_after = kill_after
        try:
            (actions.get(name) or getattr(self, name))(*arguments)
        except Exception as death:
            if type(death).__name__ != "Killed":
                raise
            device.kill_after = None
            device.held.clear()
            device.hold = set()
            self.restart(connect=True)
        device.kill_after = None
        self.check()

    def check(self) -> None:
        device = self.device
        model = device.state.record.models[MODEL]
        assert read_record(write_record(device.state.record)) == device.state.record
        assert device.running or self.may_have_none, "once it had a model, it has one"
        if device.running:
            self.may_have_none = False
        if device.running == DISABLED:
            assert model.disabled or device.uncertain or device.held
        elif device.running:
            assert device.running in device.proven, "only what was probed here runs"
        if not (device.uncertain or device.held):
            told = DISABLED if model.disabled else model.active_digest
            assert told == device.running, "what is reported is what runs"
        assert len(model.admitted) <= 5
        assert len(model.held_off) <= 16
        assert len(model.failures) <= 1


PEACE: dict[str, Any] = {
    "default": A,
    "activation": Activation.ACTIVE,
    "starts": Starts.OPEN,
    "standby": A,
    "retry": 100,
    "spread_ms": 0,
    "lasts_ms": YEAR_MS,
}


def lived(device_on_a: Any, steps: list[tuple[tuple[Any, ...], int | None]]) -> Life:
    life = Life(*device_on_a())
    life.device.proven.add(A.digest)
    for step, kill_after in steps:
        life.act(step, kill_after)
    life.device.losing = 0
    life.device.broken.clear()
    life.device.catch_up()
    life.online()
    return life


@given(steps=STEPS)
def test_device_that_never_gets_to_what_is_wanted(device_on_a: Any, steps: Any) -> None:
    life = lived(device_on_a, steps)
    device = life.device
    life.stop(False)
    life.assign(COHORT, None, [])
    life.order(COHORT, B, PEACE)
    device.performed.clear()
    for _ in range(2 * 24):
        life.live(3_600_000)
        device.acknowledge()
    assert device.running == B.digest
    assert device.phase in (Phase.SUCCEEDED, Phase.IDLE)
    work = [e for e in device.performed if not isinstance(e, do.Publish | do.WakeAt | do.Persist)]
    assert len(work) < 60, "a bounded number of effects"
    device.performed.clear()
    life.live(3_600_000)
    assert device.performed == [], "at peace it is silent"


@given(steps=STEPS)
def test_rollback_that_something_holds_up(device_on_a: Any, steps: Any) -> None:
    """Offline but for the one directive, stopped, paused: what ran before runs again."""
    life = lived(device_on_a, steps)
    device = life.device
    life.assign(COHORT, None, [])
    model = device.state.record.models[MODEL]
    standby = model.standby
    if standby is None or device.uncertain or standby.digest not in device.files:
        return
    life.stop(True)
    if device.state.record.models[MODEL].standby != standby:
        return
    back = {**PEACE, "default": standby, "standby": standby, "starts": Starts.PAUSED}
    life.order(COHORT, standby, back)
    life.live(1_000)
    assert device.running == standby.digest


@given(steps=STEPS)
def test_forward_move_that_nobody_allowed(device_on_a: Any, steps: Any) -> None:
    life = Life(*device_on_a())
    device = life.device
    device.proven.add(A.digest)
    perform = device.perform

    asked: list[do.Effect] = []

    def watched(effect: do.Effect) -> Any:
        # What was held back comes here twice; it had to be allowed when it was asked for.
        again = any(effect is one for one in asked)
        if isinstance(effect, do.Activate | do.StartShadow | do.Fetch) and not again:
            asked.append(effect)
            allow(effect)
        return perform(effect)

    def allow(effect: do.Activate | do.StartShadow | do.Fetch) -> None:
        record, live = device.state.record, device.state.live
        if effect.release.digest in device.ever_ran:
            return
        assert live.connected
        assert live.stop_seen
        assert live.assignment_seen
        assert not record.stop.stopped
        directive = record.models[MODEL].directive
        if MODEL not in record.assignment.pins:
            assert MODEL in live.directives_seen
            assert effect.release.digest not in record.assignment.blocks.get(MODEL, [])
            if isinstance(effect, do.Activate) and directive.default != effect.release:
                assert directive.activation is Activation.ACTIVE

    device.perform = watched
    for step, kill_after in steps:
        life.act(step, kill_after)
