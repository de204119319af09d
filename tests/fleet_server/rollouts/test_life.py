"""Guards a rollout's life on a real database: from draft to done, through kills and refusals."""

from __future__ import annotations

import base64
import io
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

from fleet_contract import codec, topics
from fleet_contract.features import FeatureSchema, FeatureSet
from fleet_contract.manifest import (
    Baseline,
    Capabilities,
    FileRef,
    GoldenVectors,
    Lineage,
    Manifest,
    Requirements,
    Runtime,
    TensorSpec,
    Variant,
)
from fleet_contract.messages.presence import Presence
from fleet_contract.messages.progress import ModelProgress, Phase, Progress
from fleet_contract.messages.report import Pairs, Report, Role, Window
from fleet_contract.sketches.features import FeatureSketches
from fleet_contract.sketches.latency import LatencySketch
from fleet_contract.sketches.latency import of as latencies
from fleet_contract.topics import DeviceChannel
from fleet_contract.trust.directive import Activation, Directive, ReleaseRef
from fleet_server.audit import service as audit
from fleet_server.audit import verification
from fleet_server.command_line.report_view import as_markdown
from fleet_server.command_line.rollout_view import picture
from fleet_server.database import Database
from fleet_server.devices import recording
from fleet_server.devices import service as devices_service
from fleet_server.devices.tables import DeviceRow
from fleet_server.dispatch import service as dispatch
from fleet_server.dispatch.inbound import Inbound
from fleet_server.errors import Conflict, NotFound
from fleet_server.releases.tables import ReleaseRow
from fleet_server.releases.uploads import Options
from fleet_server.rollouts import compliance, repository, service, views
from fleet_server.rollouts import plan as plans
from fleet_server.rollouts.applying import Author, renew
from fleet_server.rollouts.controller import Controller
from fleet_server.rollouts.decide import decide
from fleet_server.rollouts.directives import LIFETIME_MS
from fleet_server.rollouts.loading import ReleaseFactsCache
from fleet_server.rollouts.plan import Guardrails, RolloutPlan, Stage, StageKind
from fleet_server.rollouts.schemas import RolloutShown
from fleet_server.rollouts.snapshot import Snapshot
from fleet_server.telemetry import service as telemetry

# Each walks through whole rollouts on a database, and all of them together take long.
pytestmark = pytest.mark.slow

FLEET, COHORT, MODEL = "home", "default", "digits"
AUTHOR = Author("admin", "c" * 16)
ROWS = 100


@dataclass
class World:
    """A server's database, and devices that do at once what their directive says."""

    database: Database
    keyring: Any
    clock: Any
    outputs: FeatureSet
    sketch: Callable[[np.random.Generator, tuple[float, float]], FeatureSketches]
    cache: ReleaseFactsCache = field(default_factory=ReleaseFactsCache)
    first: str = ""
    wakes: int = 0
    pools: dict[str, list[Any]] = field(default_factory=dict)
    sequence: int = 0
    active: dict[str, str] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)

    def add_release(self, version: str, score: tuple[float, float] = (8.0, 2.0)) -> str:
        digest = version[0] * 62 + version[2] * 2
        file = FileRef("f" * 64, 10)
        manifest = Manifest(
            model=MODEL,
            version=version,
            release_counter=int(version[0]),
            created_ms=0,
            least_agent=1,
            variants=[Variant("cpu", Runtime.ONNXRUNTIME, "int8", file, Requirements())],
            inputs=[TensorSpec("x", "float32", [None, 4])],
            outputs=[TensorSpec("probabilities", "float32", [None, 10])],
            features=FeatureSchema(FeatureSet(), self.outputs),
            golden=GoldenVectors(file, 1.0, 0.1),
            baseline=file,
            lineage=Lineage("e" * 64, None, {}, None),
        )
        promised = self.sketch(np.random.default_rng(1), score)
        with self.database.transaction() as session:
            session.add(
                ReleaseRow(
                    model=MODEL,
                    version=version,
                    counter=len(self.scores) + 1,
                    state="staged",
                    pushed_by="admin",
                    correlation_id="x",
                    received_ms=1,
                    changed_ms=1,
                    attempts=1,
                    upload="u",
                    source_digest="d" * 64,
                    source_bytes=1,
                    options=codec.encode_json(Options(MODEL, version)).decode(),
                    steps="[]",
                    digest=digest,
                    manifest=codec.encode_json(manifest),
                    baseline=codec.encode_msgpack(
                        Baseline(inputs=FeatureSketches([], []), outputs=promised)
                    ),
                )
            )
        self.scores[digest] = score
        return digest

    def add_devices(self, count: int, capabilities: Capabilities) -> None:
        with self.database.transaction() as session:
            devices_service.ensure_default_cohort(session, FLEET)
            for number in range(count):
                session.add(
                    DeviceRow(
                        fleet=FLEET,
                        name=f"device-{number:03}",
                        labels={},
                        cohort=COHORT,
                        enrolled_ms=1,
                        capabilities=msgspec.to_builtins(capabilities),
                    )
                )
        for number in range(count):
            self.active[f"device-{number:03}"] = ""
            self._record(f"device-{number:03}", online=True)

    def _record(self, name: str, *, online: bool) -> None:
        presence = Presence(online, 1, "0" * 16, 1, "test", None, {})
        with self.database.transaction() as session:
            recording.record_presence(session, FLEET, name, presence, self.clock.now_ms())

    def directive(self) -> Any:
        with self.database.reading() as session:
            rows = dispatch.control_messages(session, FLEET)
        topic = topics.directive(FLEET, COHORT, MODEL)
        found = [row.payload for row in rows if row.topic == topic]
        if not found:
            return None
        payload = base64.b64decode(msgspec.json.decode(found[0])["payload"])
        return msgspec.json.decode(payload, type=Directive)

    def obey(self) -> None:
        """Every device follows the directive, answers for a while, and reports."""
        directive = self.directive()
        self.sequence += 1
        now_ms = self.clock.now_ms()
        reports = []
        rng = np.random.default_rng(self.sequence)
        with self.database.transaction() as session:
            for name in self.active:
                shadow = ""
                if directive is not None:
                    shadow = self._follow(session, name, directive, now_ms)
                windows = []
                if self.active[name]:
                    windows.append(self._window(rng, self.active[name], Role.ACTIVE, now_ms))
                if shadow:
                    windows.append(self._window(rng, shadow, Role.SHADOW, now_ms))
                if windows:
                    report = Report("0" * 16, windows)
                    reports.append(
                        Inbound(FLEET, name, DeviceChannel.REPORT, MODEL, report, now_ms)
                    )
            telemetry.record_reports(session, reports, now_ms, schema_of=lambda *_: None)

    def _follow(self, session, name: str, directive: Directive, now_ms: int) -> str:
        arm = directive.arm_for(name)
        target = arm.release if arm is not None else directive.default
        if not isinstance(target, ReleaseRef):
            return ""
        shadow = arm is not None and directive.activation is Activation.SHADOW
        phase = Phase.SHADOWING if shadow else Phase.SUCCEEDED
        if name in self.failing and target.digest != self.active[name]:
            phase = Phase.FAILED
        elif not shadow:
            self.active[name] = target.digest
        progress = ModelProgress(
            model=MODEL,
            rollout=directive.rollout,
            phase=phase,
            target=target.digest,
            active=self.active[name],
            standby="",
            generation=1,
            epoch=directive.epoch,
            changed_ms=now_ms,
        )
        message = Progress("0" * 16, 1, self.sequence, [progress])
        recording.record_progress(session, FLEET, name, message, now_ms)
        return target.digest if shadow else ""

    def _window(self, rng, digest: str, role: Role, now_ms: int) -> Window:
        return Window(
            release=digest,
            role=role,
            start_ms=now_ms,
            length_ms=1000,
            sequence=self.sequence,
            closed=True,
            predictions=ROWS,
            errors=0,
            latency=self._drawn("latency", _latency, rng),
            schema="0" * 64,
            inputs=None,
            outputs=self._drawn(
                str(self.scores[digest]), lambda r: self.sketch(r, self.scores[digest]), rng
            ),
            pairs=Pairs(ROWS, ROWS - 2, 10) if role is Role.SHADOW else None,
        )

    def _drawn(self, kind: str, draw: Callable[[np.random.Generator], Any], rng) -> Any:
        """One of a few dozen that were drawn in advance: drawing is what costs time here."""
        pool = self.pools.setdefault(kind, [])
        if not pool:
            pool += [draw(np.random.default_rng(number)) for number in range(60)]
        return pool[int(rng.integers(len(pool)))]

    def controller(self) -> Controller:
        def wake() -> None:
            self.wakes += 1

        return Controller(self.database, self.keyring, wake, self.clock, interval_ms=10)

    def run(self, controller: Controller, ticks: int = 400) -> str:
        """Let time pass until the newest rollout ends, is held, or the ticks are over."""
        for _ in range(ticks):
            controller.tick()
            self.obey()
            self.clock.wall_ms += 1_000
            row = self.newest()
            if row.state in {"completed", "rolled_back", "aborted"} or row.held:
                break
        return self.newest().state

    def newest(self):
        with self.database.reading() as session:
            return repository.newest(session, FLEET, count=1)[0]

    def create(self, version: str, plan: RolloutPlan) -> str:
        with self.database.transaction() as session:
            return service.create(
                session,
                fleet=FLEET,
                cohort=COHORT,
                model=MODEL,
                version=version,
                plan=plan,
                random=self.clock.random_bytes(6),
                author=AUTHOR,
                now_ms=self.clock.now_ms(),
            ).id

    def start(self, version: str, plan: RolloutPlan) -> str:
        rollout = self.create(version, plan)
        with self.database.transaction() as session:
            service.start(
                session,
                fleet=FLEET,
                rollout=rollout,
                random=self.clock.random_bytes(16),
                author=AUTHOR,
                now_ms=self.clock.now_ms(),
            )
        return rollout

    def act(self, action: Callable, rollout: str, **more: object):
        with self.database.transaction() as session:
            return action(
                session,
                self.keyring,
                self.cache,
                rollout=rollout,
                author=AUTHOR,
                now_ms=self.clock.now_ms(),
                **more,
            )

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for digest in self.active.values():
            found[digest] = found.get(digest, 0) + 1
        return found


def _latency(rng: np.random.Generator) -> LatencySketch:
    return latencies([int(x) for x in rng.lognormal(8, 0.1, 40)])


PLAN = RolloutPlan(
    name="quick",
    stages=(
        Stage(name="shadow", kind=StageKind.SHADOW, percent=10.0, soak_ms=8_000),
        Stage(
            name="canary",
            kind=StageKind.CANARY,
            percent=10.0,
            soak_ms=8_000,
            minimum_devices=3,
            minimum_predictions=100,
            deadline_ms=60_000,
        ),
        Stage(name="full", kind=StageKind.FULL, percent=100.0, soak_ms=4_000, deadline_ms=60_000),
    ),
    report_every_ms=1_000,
    looks=2,
    guardrails=Guardrails(silence_grace_ms=20_000),
)
QUICK = replace(PLAN, looks=1, stages=tuple(replace(stage, soak_ms=1_000) for stage in PLAN.stages))
COMMITS = 10
"""What the controller commits in the quick plan, the lease included."""
DIRECT = plans.template("direct")


@pytest.fixture
def world(database, keyring, clock, capabilities, fleet, behaviour) -> World:
    drawer = fleet()
    outputs = fleet().snapshot(PLAN).rollout.candidate.outputs

    def sketch(rng, score):
        return drawer.sketches(rng, behaviour(beta=score), ROWS, 0.0)

    world = World(database, keyring, clock, outputs, sketch)
    world.add_devices(40, capabilities)
    world.first = world.add_release("1.0.0")
    return world


@pytest.fixture
def settled(world: World) -> World:
    """Everybody runs 1.0.0 and has a past."""
    world.start("1.0.0", DIRECT)
    assert world.run(world.controller()) == "completed"
    # Longer than a lease: other controllers may begin.
    for _ in range(6):
        world.obey()
        world.clock.wall_ms += 1_000
    return world


def test_good_release_reaches_everybody(settled: World) -> None:
    digest = settled.add_release("1.1.0")
    settled.start("1.1.0", PLAN)
    assert settled.run(settled.controller()) == "completed"
    assert settled.counts() == {digest: 40}
    row = settled.newest()
    with settled.database.reading() as session:
        shown = views.view(session, row, settled.cache, now_ms=settled.clock.now_ms())
        actions = [entry.action for entry in audit.newest(session)]
        stored = repository.cohort_release(session, FLEET, COHORT, MODEL)
    assert [stage.state for stage in shown.stages] == ["passed"] * 3
    assert [stage.devices for stage in shown.stages] == [4, 4, 40]
    assert (stored.release, stored.previous) == (digest, settled.first)
    assert actions[0] == "rollout.complete"
    assert "passed" in shown.explanation
    assert shown.exposure["running"] == {"candidate": 40}


def test_bad_release_is_caught_by_canaries_and_taken_back(settled: World) -> None:
    digest = settled.add_release("2.0.0")
    settled.scores[digest] = (2.0, 2.0)  # in the field it is not what it promised
    settled.start("2.0.0", replace(PLAN, stages=PLAN.stages[1:]))
    assert settled.run(settled.controller()) == "rolled_back"
    assert settled.counts() == {settled.first: 40}
    row = settled.newest()
    with settled.database.reading() as session:
        shown = views.view(session, row, settled.cache, now_ms=settled.clock.now_ms())
        report = compliance.report(session, FLEET, MODEL, "2.0.0")
        chain = verification.verify(session, {}, fleet=FLEET)
    assert shown.rollback is not None
    assert (shown.rollback.confirmed, shown.rollback.laggards) == (40, [])
    (told,) = report.rollouts
    assert (told["state"], told["exposure"]["ran_it"]) == ("rolled_back", 4)
    (taken_back,) = [item for item in told["decisions"] if item["kind"] == "roll_back"]
    assert taken_back["gates"], "a report without what the decision rests on"
    assert [item["confirmed"] for item in report.rollbacks] == [40]
    assert "approval" in report.skipped_safeguards and report.approvals == []
    assert {"rollout.start", "rollout.roll_back"} <= {item["action"] for item in report.audit}
    assert "2.0.0: compliance report" in as_markdown(msgspec.to_builtins(report))
    assert chain.findings == ()
    assert shown.rollback.last_changed_ms >= shown.rollback.decided_ms
    failed = [gate for gate in shown.gates if gate["verdict"] == "fail"]
    assert [gate["guardrail"] for gate in failed] == ["output_drift"]
    assert failed[0]["n_candidate"] == 4
    assert "top_probability" in shown.explanation
    # The decision can be made again from what was stored.
    kept = next(item for item in shown.evidence if item["kind"] == "roll_back")
    with settled.database.reading() as session:
        snapshot = msgspec.msgpack.decode(service.inputs(session, kept["inputs"]), type=Snapshot)
    again = msgspec.json.decode(msgspec.json.encode(decide(snapshot)))
    assert again == kept["decision"]


def test_shadow_stage_lets_a_bad_release_answer(settled: World) -> None:
    digest = settled.add_release("2.0.0")
    settled.scores[digest] = (2.0, 2.0)
    settled.start("2.0.0", PLAN)
    assert settled.run(settled.controller()) == "rolled_back"
    assert settled.newest().exposed_ms == 0
    assert settled.counts() == {settled.first: 40}


def test_devices_that_fail_roll_back_at_once(settled: World) -> None:
    settled.add_release("2.0.0")
    settled.failing = set(settled.active)
    settled.start("2.0.0", replace(PLAN, stages=PLAN.stages[1:]))
    assert settled.run(settled.controller(), ticks=10) == "rolled_back"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("victim", range(1, COMMITS + 1))
def test_killed_around_a_commit(settled: World, monkeypatch, victim: int, after: bool) -> None:
    """Around the n-th commit of the controller; a new one goes on and nothing is done twice."""
    digest = settled.add_release("1.1.0")
    settled.start("1.1.0", QUICK)
    from sqlmodel import Session

    commit = Session.commit
    commits = 0

    class Killed(BaseException):
        pass

    own = threading.get_ident()

    def killing(session) -> None:
        nonlocal commits
        if threading.get_ident() != own:  # of a server that another test of this process shares
            commit(session)
            return
        commits += 1
        if commits == victim and not after:
            raise Killed
        commit(session)
        if commits == victim and after:
            raise Killed

    controller = settled.controller()
    for _ in range(60):
        monkeypatch.setattr(Session, "commit", killing)
        try:
            controller.tick()
        except Killed:
            controller = settled.controller()
            # The dead one's lease runs out.
            settled.clock.wall_ms += 6_000
        monkeypatch.setattr(Session, "commit", commit)
        settled.obey()
        settled.clock.wall_ms += 1_000
        if settled.newest().state == "completed":
            break
    assert commits >= victim, "the kill point was never reached"
    assert settled.counts() == {digest: 40}
    with settled.database.reading() as session:
        kinds = [item.kind for item in repository.evidence(session, settled.newest().id, count=99)]
        actions = [entry.action for entry in audit.newest(session)]
    assert kinds.count("advance") == 2
    assert kinds.count("complete") == 1
    assert actions.count("rollout.start_stage") == 2  # the first release's, and this one's


def test_two_replicas_decide_at_once(settled: World) -> None:
    settled.add_release("1.1.0")
    settled.start("1.1.0", PLAN)
    leader, other = settled.controller(), settled.controller()
    assert leader.tick() == 1
    assert other.tick() == 0
    settled.clock.wall_ms += 6_000
    settled.obey()
    assert other.tick() >= 1
    assert leader.tick() == 0


def test_decision_on_an_older_state_is_applied(settled: World, monkeypatch) -> None:
    settled.add_release("1.1.0")
    rollout = settled.start("1.1.0", PLAN)
    controller = settled.controller()
    from fleet_server.rollouts import controller as module

    def decide_late(snapshot: Snapshot):
        settled.act(service.abort, rollout)
        return decide(snapshot)

    monkeypatch.setattr(module, "decide", decide_late)
    controller.tick()
    assert settled.newest().state == "aborted"
    assert settled.directive().rollout != rollout


def test_operator_pauses_resumes_and_aborts(settled: World) -> None:
    digest = settled.add_release("1.1.0")
    rollout = settled.start("1.1.0", replace(PLAN, stages=PLAN.stages[1:]))
    controller = settled.controller()
    settled.run(controller, ticks=3)
    settled.act(service.pause, rollout)
    assert settled.directive().starts.value == "paused"
    assert settled.run(controller, ticks=15) == "paused"
    assert settled.counts()[digest] == 4
    settled.act(service.resume, rollout)
    assert settled.directive().starts.value == "open"
    settled.act(service.abort, rollout)
    assert settled.directive().starts.value == "canceled"
    settled.obey()
    assert settled.counts()[digest] == 4, "an abort leaves changed devices as they are"
    settled.act(service.roll_back, rollout, reason="enough")
    settled.run(controller, ticks=3)
    assert settled.counts() == {settled.first: 40}


def test_rollback_after_completion_restores_the_release_before(settled: World) -> None:
    settled.add_release("1.1.0")
    rollout = settled.start("1.1.0", PLAN)
    controller = settled.controller()
    assert settled.run(controller) == "completed"
    settled.act(service.roll_back, rollout, reason="")
    assert settled.run(controller) == "rolled_back"
    assert settled.counts() == {settled.first: 40}
    with settled.database.reading() as session:
        assert repository.cohort_release(session, FLEET, COHORT, MODEL).release == settled.first
    with pytest.raises(Conflict, match="cannot roll back"):
        settled.act(service.roll_back, rollout, reason="")


def test_rollback_of_a_rollout_that_was_overtaken(settled: World) -> None:
    settled.add_release("1.1.0")
    first = settled.start("1.1.0", PLAN)
    controller = settled.controller()
    assert settled.run(controller) == "completed"
    settled.add_release("1.2.0")
    settled.start("1.2.0", PLAN)
    with pytest.raises(Conflict, match="started in default after"):
        settled.act(service.roll_back, first, reason="")


def test_first_release_that_fails_is_rolled_back_to_nothing(world: World) -> None:
    world.failing = set(world.active)
    rollout = world.start("1.0.0", plans.template("careful"))
    world.run(world.controller(), ticks=10)
    row = world.newest()
    assert (row.state, row.held) == ("paused", True)
    with pytest.raises(Conflict, match="ran no digits before"):
        world.act(service.roll_back, rollout, reason="")


def test_two_rollouts_of_a_model_in_a_cohort(settled: World) -> None:
    settled.add_release("1.1.0")
    settled.add_release("1.2.0")
    settled.start("1.1.0", PLAN)
    with pytest.raises(Conflict, match="is scheduled"):
        settled.start("1.2.0", PLAN)


def test_release_that_runs_already(settled: World) -> None:
    with pytest.raises(Conflict, match="already"):
        settled.start("1.0.0", PLAN)


def test_stage_with_fewer_devices_than_its_minimum(settled: World) -> None:
    settled.add_release("1.1.0")
    few = replace(PLAN.stages[1], percent=1.0)
    with pytest.raises(Conflict, match="needs 3 devices"):
        settled.start("1.1.0", replace(PLAN, stages=(few, PLAN.stages[2])))
    # Nothing is left of the attempt but the draft.
    assert settled.newest().state == "draft"


def test_release_or_rollout_that_does_not_exist(world: World) -> None:
    with pytest.raises(NotFound):
        world.create("9.9.9", PLAN)
    with pytest.raises(NotFound):
        world.act(service.pause, "0123456789ab")


def test_directive_runs_out_while_nothing_happens(settled: World) -> None:
    before = settled.directive()
    settled.clock.wall_ms += LIFETIME_MS // 2 + 1
    assert settled.controller().tick() == 1
    after = settled.directive()
    assert after.expires_ms == settled.clock.wall_ms + LIFETIME_MS
    assert after.epoch > before.epoch
    assert (after.default, after.arms) == (before.default, before.arms)
    with settled.database.transaction() as session:
        assert renew(session, settled.keyring, now_ms=settled.clock.wall_ms) == 0


def test_one_broken_rollout_keeps_others_from_being_decided(settled: World, monkeypatch) -> None:
    settled.add_release("1.1.0")
    settled.start("1.1.0", PLAN)
    controller = settled.controller()
    with settled.database.transaction() as session:
        row = repository.find(session, FLEET, settled.newest().id)
        assert row is not None
        broken = row.model_dump(exclude={"sequence"}) | {"id": "broken", "candidate": "0" * 64}
        session.add(repository.RolloutRow(**broken, sequence=0))
    assert controller.tick() == 1
    assert controller.counts()["errors"] == 1
    assert settled.newest().state == "running"


def test_page_that_a_person_watches(settled: World) -> None:
    digest = settled.add_release("2.0.0")
    settled.scores[digest] = (2.0, 2.0)
    settled.start("2.0.0", replace(PLAN, stages=PLAN.stages[1:]))
    controller = settled.controller()
    pages = []
    for _ in range(30):
        controller.tick()
        settled.obey()
        settled.clock.wall_ms += 1_000
        with settled.database.reading() as session:
            view = views.view(
                session, settled.newest(), settled.cache, now_ms=settled.clock.now_ms()
            )
        shown = RolloutShown.model_validate(view).model_dump(mode="json")
        console = Console(width=160, record=True, file=io.StringIO())
        console.print(picture(shown))
        pages.append(console.export_text())
    assert "canary" in pages[0] and "No gate has been judged" in pages[0]
    assert any(re.search(r"soaking +\S+ of 2 +8 s +[1-8] s", page) for page in pages)
    assert re.search(r"output_drift +fail", pages[-1])
    assert "40 of 40 confirmed the rollback" in pages[-1]
