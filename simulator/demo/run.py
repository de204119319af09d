"""The demo: a real server, sixty real agents, a good release promoted and a bad one rolled back.

Decides the order of what happens and what is measured of it. The releases are made in
:mod:`simulator.digits`, the numbers of the plot are in :mod:`simulator.demo.plot`, the form of
what is found out in :mod:`simulator.demo.story`.
"""

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from fleet_server.command_line.connection import Connection
from simulator import clock, digits
from simulator.demo import page, plot
from simulator.demo.chapters import distributions, rollout_story
from simulator.demo.screen import Screen
from simulator.demo.server_process import ServerProcess
from simulator.demo.story import (
    ReleaseStory,
    Rollback,
    RolloutStory,
    Sample,
    Story,
    plain_reason,
    shortcomings,
)
from simulator.digits import TrainedModel
from simulator.errors import SimulatorError
from simulator.live.fleet import LiveFleet

POLL_S = 0.2
STAGING_S = 60.0
CONNECTING_S = 60.0
ROLLOUT_S = 300.0


@dataclass(frozen=True)
class Options:
    """How the demo is played; ``folder`` gets the reports, the logs and the devices' folders."""

    folder: Path = Path("build/demo")
    devices: int = plot.DEVICES
    processes: int = plot.PROCESSES
    seed: int = 1
    broker: str = "embedded"
    keep: bool = False


@dataclass
class Notes:
    """What is gathered while the demo runs."""

    releases: list[ReleaseStory] = field(default_factory=list)
    rollouts: list[RolloutStory] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    timeline: list[Sample] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


def run(options: Options) -> int:
    """Play the demo; return the exit code: 0 if everything happened that must.

    Raises:
        SimulatorError: if something could not even be tried.
    """
    screen = Screen()
    if options.folder.exists():
        shutil.rmtree(options.folder)
    options.folder.mkdir(parents=True)
    screen.plain(
        "edgefleet demo: a real server, real agents with onnxruntime, real images. "
        f"Everything it writes is in {options.folder}/."
    )
    screen.heading("Getting ready")
    with ServerProcess(options.folder / "server", broker=options.broker) as server:
        screen.say("the server starts: API, broker, database and controller in one process")
        models = _train(options, screen)
        api = server.wait_until_ready()
        screen.say(f"the server is ready at {api.url}")
        notes = Notes()
        with LiveFleet(
            url=api.url,
            token=server.token,
            devices=options.devices,
            processes=options.processes,
            folder=options.folder / "devices",
            seed=options.seed,
        ) as fleet:
            screen.say(
                f"{options.devices} agents start, {options.processes} processes with "
                f"{options.devices // options.processes} each; each has its own connection, "
                "folder and runtime"
            )
            for model in models.values():
                _push(api, model, notes, screen)
            _wait(
                lambda: _online(api) == options.devices,
                CONNECTING_S,
                "all agents to connect",
                lambda: screen.now(f"{_online(api)} of {options.devices} agents are connected"),
            )
            screen.say(f"all {options.devices} agents are enrolled and connected")
            for release, plan, what in plot.ROLLOUTS:
                _roll_out(api, fleet, notes, screen, release=release, plan=plan, what=what)
            _keep_card(api, options.folder / "card")
            story = _tell(options, api, fleet, notes, screen)
        if options.keep:
            server.let_go()
    return _conclude(options, story, screen, kept=server if options.keep else None)


def _train(options: Options, screen: Screen) -> dict[str, TrainedModel]:
    screen.now("training three classifiers on scikit-learn's digits")
    models = digits.train(options.seed)
    accuracies = ", ".join(f"{item.version} {item.accuracy:.1%}" for item in models.values())
    screen.say(f"three classifiers of handwritten digits are trained; held-out: {accuracies}")
    return models


def _push(api: Connection, model: TrainedModel, notes: Notes, screen: Screen) -> None:
    screen.now(f"{model.version} is quantised, checked against its float model and signed")
    files = {name: (f"{name}.npz", _npz(arrays)) for name, arrays in model.rows().items()}
    files["model"] = ("model.onnx", model.model)
    fields = {"version": model.version, "metadata": json.dumps(model.metadata())}
    path = f"/v1/models/{digits.MODEL}/releases"
    api.call("POST", path, data=fields, files=files)
    release: dict[str, Any] = {}

    def staged() -> bool:
        release.update(api.get(f"{path}/{model.version}"))
        return bool(release["state"] != "staging")

    _wait(staged, STAGING_S, f"{model.version} to be staged")
    if release["state"] != "staged":
        raise SimulatorError(f"{model.version} was refused: {release['problem']['detail']}")
    parity = next(step["figures"] for step in release["steps"] if step["name"] == "parity")
    notes.versions[release["digest"]] = model.version
    notes.releases.append(
        ReleaseStory(
            version=model.version,
            digest=release["digest"],
            float_bytes=release["source_bytes"],
            int8_bytes=int(parity["size_bytes"]),
            agreement_percent=100 * float(parity["agreement"]),
            field_accuracy_percent=100 * model.field_accuracy,
        )
    )
    screen.say(
        f"{model.version} is staged: {release['source_bytes']:,} bytes float, "
        f"{parity['size_bytes']:,} bytes int8, agreement {parity['agreement']:.1%}"
    )


def _npz(arrays: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _online(api: Connection) -> int:
    devices = api.get("/v1/devices", count=1000)["devices"]
    return sum(device["online"] for device in devices)


def _roll_out(
    api: Connection,
    fleet: LiveFleet,
    notes: Notes,
    screen: Screen,
    *,
    release: str,
    plan: dict[str, Any],
    what: str,
) -> None:
    screen.heading(f"{release}: {what}")
    body = {
        "cohort": plot.COHORT,
        "model": digits.MODEL,
        "version": release,
        "plan": plan,
        "start": True,
    }
    number = api.post("/v1/rollouts", body)["id"]
    shown: dict[str, Any] = {}
    said: dict[str, str] = {}

    def ended() -> bool:
        shown.update(api.get(f"/v1/rollouts/{number}"))
        _sample(fleet, notes)
        for stage in shown["stages"]:
            if said.get(stage["name"]) != stage["state"]:
                said[stage["name"]] = stage["state"]
                _say_stage(screen, stage)
        return bool(shown["brief"]["ended_ms"]) or shown["brief"]["state"] == "paused"

    def progress() -> None:
        running = notes.timeline[-1].devices if notes.timeline else {}
        counts = ", ".join(f"{count} on {name}" for name, count in sorted(running.items()))
        screen.now(f"{counts}. {shown['brief']['reason'][:100]}" if shown else counts)

    _wait(ended, ROLLOUT_S, f"the rollout of {release} to end", progress)
    story = rollout_story(shown)
    notes.rollouts.append(story)
    notes.shown.append(dict(shown))
    mark = "good" if story.outcome == "completed" else "bad"
    screen.say(f"{release} is {story.outcome.replace('_', ' ')}. {story.why}", mark)


def _say_stage(screen: Screen, stage: dict[str, Any]) -> None:
    name, state, devices = stage["name"], stage["state"], stage["devices"]
    if state == "deploying":
        role = (
            "run it in the shadow of" if stage["kind"] == "shadow" else "answer with it instead of"
        )
        screen.say(f"stage {name}: {devices} devices {role} what they have")
    elif state == "soaking":
        screen.say(f"stage {name}: they run it; now they are watched", "soft")
    elif state in ("passed", "failed", "inconclusive"):
        screen.say(f"stage {name} {state}", "good" if state == "passed" else "bad")


def _sample(fleet: LiveFleet, notes: Notes) -> None:
    counts = Counter(
        notes.versions.get(digest, "nothing yet") for digest in fleet.status().active.values()
    )
    sample = Sample(clock.now_ms(), dict(counts))
    if not notes.timeline or notes.timeline[-1].devices != sample.devices:
        notes.timeline.append(sample)


def _wait(
    until: Callable[[], bool],
    limit_s: float,
    what: str,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    deadline_s = clock.monotonic_s() + limit_s
    while not until():
        if clock.monotonic_s() > deadline_s:
            raise SimulatorError(f"waited {limit_s:.0f} s in vain for {what}")
        meanwhile()
        clock.sleep_s(POLL_S)


def _tell(
    options: Options, api: Connection, fleet: LiveFleet, notes: Notes, screen: Screen
) -> Story:
    status = fleet.status()
    at_end = Counter(notes.versions.get(digest, "nothing") for digest in status.active.values())
    notes.timeline.append(Sample(clock.now_ms(), dict(at_end)))
    traffic = _traffic(api)
    last = notes.shown[-1]
    rollback = _rollback(last)
    return Story(
        edgefleet=version("edgefleet"),
        seed=options.seed,
        devices=options.devices,
        processes=options.processes,
        broker=f"{options.broker} broker",
        duration_s=round(screen.elapsed_s, 1),
        releases=notes.releases,
        rollouts=notes.rollouts,
        rollback=rollback,
        rollback_ms=rollback.rollback_ms if rollback is not None else None,
        predictions=status.predictions,
        failed_inferences=status.failed_inferences,
        artifact_bytes=traffic["artifact_bytes"],
        control_bytes=traffic["sent_bytes"],
        report_bytes=traffic["received_bytes"],
        devices_per_release=dict(at_end),
        distributions=distributions(last),
        timeline=notes.timeline,
    )


def _keep_card(api: Connection, folder: Path) -> None:
    """Write the model card of the good release with its pictures."""
    path = f"/v1/models/{digits.MODEL}/releases/{plot.GOOD}/card"
    card = api.get(path)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    (folder / "card.md").write_text(card["markdown"], encoding="utf-8")
    for name in card["plots"]:
        svg = api.text(f"{path}/plots/{name}.svg")
        (folder / "plots" / f"{name}.svg").write_text(svg, encoding="utf-8")


def _rollback(shown: dict[str, Any]) -> Rollback | None:
    found = shown["rollback"]
    if found is None:
        return None
    reached = next((stage["devices"] for stage in shown["stages"] if stage["state"] == "failed"), 0)
    return Rollback(
        decided_ms=found["decided_ms"],
        rollback_ms=max(0, found["last_changed_ms"] - found["decided_ms"]),
        confirmed_ms=max(0, found["last_seen_ms"] - found["decided_ms"]),
        devices=reached,
    )


def _traffic(api: Connection) -> dict[str, int]:
    """Return the bytes that the server counted: to devices and from them."""
    found = {"artifact_bytes": 0, "sent_bytes": 0, "received_bytes": 0}
    for family in text_string_to_metric_families(httpx.get(f"{api.url}/metrics").text):
        for sample in family.samples:
            if sample.name == "edgefleet_http_response_bytes_total":
                if sample.labels["path"].startswith("/v1/store"):
                    found["artifact_bytes"] += int(sample.value)
            elif sample.name in ("edgefleet_broker_sent_bytes", "edgefleet_broker_received_bytes"):
                found[sample.name.removeprefix("edgefleet_broker_")] = int(sample.value)
    return found


def _conclude(options: Options, story: Story, screen: Screen, *, kept: ServerProcess | None) -> int:
    screen.quiet()
    report = options.folder / "report.json"
    report.write_bytes(msgspec.json.format(msgspec.json.encode(story), indent=2))
    (options.folder / "report.html").write_text(page.render(story), encoding="utf-8")
    missing = shortcomings(story, good=plot.GOOD, bad=plot.BAD)
    screen.heading("What happened")
    for line in summary(story):
        screen.plain(line)
    screen.plain()
    screen.plain(f"{report} has the figures, {report.with_suffix('.html')} the pictures.", "soft")
    screen.plain(
        f"{options.folder / 'card' / 'card.md'} is the model card of {plot.GOOD}: what a stranger "
        "should know of it.",
        "soft",
    )
    if kept is not None:
        url = kept.url
        screen.plain(
            f"The server is still running: {url}/docs is its API documentation, "
            f"{kept.folder}/admin-token the token. End it by: kill {kept.process_id}"
        )
    for shortcoming in missing:
        screen.plain(f"It did not go as it must: {shortcoming}", "bad")
    return 1 if missing else 0


def summary(story: Story) -> list[str]:
    """Return what happened in a few sentences for somebody who knows nothing of it."""
    lines = []
    for rollout in story.rollouts:
        took_s = (rollout.ended_ms - rollout.began_ms) / 1000
        lines.append(
            f"{rollout.version} was {rollout.outcome.replace('_', ' ')} in {took_s:.0f} s."
        )
    bad = next((item for item in story.rollouts if item.outcome == "rolled_back"), None)
    if bad is not None:
        lines.append(f"Why {bad.version} was rolled back: {plain_reason(story)}")
        lines.append(f"In figures: {bad.why}")
    if story.rollback is not None:
        lines.append(
            f"Decision to last device back on its old model: {story.rollback.rollback_ms} ms; "
            f"the server had heard it from all of them after {story.rollback.confirmed_ms} ms."
        )
    lines.append(
        f"{story.predictions:,} predictions were answered meanwhile, "
        f"{story.failed_inferences} failed."
    )
    lines.append(
        f"Sent: {story.artifact_bytes:,} bytes of models and manifests, {story.control_bytes:,} of "
        f"messages to devices and the server, {story.report_bytes:,} from them."
    )
    counts = ", ".join(f"{count} on {name}" for name, count in story.devices_per_release.items())
    lines.append(f"At the end: {counts}.")
    return lines
