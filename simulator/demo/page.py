"""The demo's page: one self-contained HTML file with the timeline and the drifted outputs.

Decides how a story looks. Charts are inline SVG made here, in the reader's light or dark theme;
nothing is loaded from anywhere.
"""

from collections.abc import Callable
from html import escape
from string import Template

from simulator.demo.story import (
    Distribution,
    GateStory,
    RolloutStory,
    Sample,
    StageStory,
    Story,
    plain_reason,
)

WIDTH = 960
CHART_HEIGHT = 220
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 16, 32
_COLOURS = {"completed": ("--s1", "--s2"), "rolled_back": ("--bad",)}
"""Colours of the style sheet for versions, by how their rollouts ended; one after the other."""

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>edgefleet demo</title>
<style>
:root { --ground:#fcfcfb; --ink:#1c1c1a; --soft:#6b6a65; --line:#dddcd6; --card:#ffffff;
  --s0:#c3c7cc; --s1:#5b86b8; --s2:#2a7f62; --good:#2a7f62; --bad:#b8433f; }
@media (prefers-color-scheme: dark) { :root { --ground:#161615; --ink:#eceae4; --soft:#9c9a92;
  --line:#34332f; --card:#1e1e1c; --s0:#55585c; --s1:#7ea6d6; --s2:#4fb491;
  --good:#4fb491; --bad:#e0716c; } }
* { box-sizing: border-box }
body { margin:0; background:var(--ground); color:var(--ink);
  font:16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif }
main { max-width:1008px; margin:0 auto; padding:32px 24px 64px }
h1 { font-size:28px; line-height:1.25; margin:0 0 8px } h2 { font-size:20px; margin:40px 0 8px }
p { max-width:72ch; margin:8px 0 } .soft { color:var(--soft) }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(280px,1fr)); gap:12px;
  margin:24px 0 }
.tile { background:var(--card); border:1px solid var(--line); border-radius:8px; padding:12px 16px }
.tile b { display:block; font-size:24px; font-variant-numeric:tabular-nums }
.tile span { color:var(--soft); font-size:14px }
figure { margin:12px 0; background:var(--card); border:1px solid var(--line); border-radius:8px;
  padding:12px; overflow-x:auto }
figcaption { color:var(--soft); font-size:14px; margin-top:8px }
svg { width:100%; min-width:640px; height:auto; display:block }
svg text { fill:var(--soft); font-size:12px } svg .axis { stroke:var(--line) }
table { border-collapse:collapse; width:100%; font-size:14px; font-variant-numeric:tabular-nums }
th,td { text-align:left; padding:6px 12px 6px 0; border-bottom:1px solid var(--line);
  vertical-align:top }
td:first-child,td:nth-child(3) { white-space:nowrap }
th { color:var(--soft); font-weight:500 }
.table { overflow-x:auto }
.pass,.passed,.completed { color:var(--good) } .fail,.failed,.rolled_back { color:var(--bad) }
.key { display:inline-block; width:10px; height:10px; border-radius:2px; margin:0 6px 0 14px }
code { font-size:13px }
$colours
</style></head><body><main>
<h1>$headline</h1>
<p>$lead</p>
<div class="tiles">$tiles</div>
<h2>What ran on the devices</h2>
<figure>$timeline<figcaption>Devices by the release that answers their predictions. $keys
</figcaption></figure>
<h2>What gave it away</h2>
<p>$drift</p>
$distributions
$rollouts
<h2>The releases</h2>
<div class="table"><table><thead><tr><th>Release</th><th>Float model</th><th>Staged (int8)</th>
<th>Agreement with the float model</th><th>Accuracy on what the devices see</th></tr></thead>
<tbody>$releases</tbody></table></div>
<p class="soft">edgefleet $version, seed $seed, $broker. The same figures stand in
<code>report.json</code> beside this page.</p>
</main></body></html>
""")


def render(story: Story) -> str:
    """Return the page as HTML."""
    versions = _versions(story)
    colours = "".join(
        f".v{i} {{ fill:var({colour}); background:var({colour}) }}\n"
        for i, colour in enumerate(_colours(story, versions))
    )
    bad = next((item for item in story.rollouts if item.outcome == "rolled_back"), None)
    return _PAGE.substitute(
        colours=colours,
        headline=escape(_headline(story, bad)),
        lead=escape(plain_reason(story) or "No release was rolled back."),
        tiles=_tiles(story),
        timeline=_timeline(story.timeline, versions),
        keys="".join(
            f'<span class="key v{i}"></span>{escape(version)}' for i, version in enumerate(versions)
        ),
        rollouts="".join(_rollout(item) for item in story.rollouts),
        drift=escape(_drift(story, bad)),
        distributions="".join(_distribution(item) for item in story.distributions),
        releases="".join(
            f"<tr><td>{escape(item.version)}</td><td>{item.float_bytes:,} bytes</td>"
            f"<td>{item.int8_bytes:,} bytes</td><td>{item.agreement_percent:.1f}%</td>"
            f"<td>{item.field_accuracy_percent:.1f}%</td></tr>"
            for item in story.releases
        ),
        version=escape(story.edgefleet),
        seed=story.seed,
        broker=escape(story.broker),
    )


def _versions(story: Story) -> list[str]:
    seen: dict[str, None] = {}
    for sample in story.timeline:
        for version in sample.devices:
            seen.setdefault(version)
    return list(seen)


def _colours(story: Story, versions: list[str]) -> list[str]:
    outcomes = {rollout.version: rollout.outcome for rollout in story.rollouts}
    used: dict[str, int] = {}
    colours = []
    for version in versions:
        outcome = outcomes.get(version, "")
        choice = _COLOURS.get(outcome, ("--s0",))
        colours.append(choice[used.get(outcome, 0) % len(choice)])
        used[outcome] = used.get(outcome, 0) + 1
    return colours


def _headline(story: Story, bad: RolloutStory | None) -> str:
    good = [item.version for item in story.rollouts if item.outcome == "completed"]
    parts = [f"{good[-1]} reached {story.devices} devices"] if good else []
    if bad is not None and story.rollback is not None:
        parts.append(
            f"{bad.version} was stopped at {story.rollback.devices} of them "
            f"and taken back in {story.rollback.rollback_ms} ms"
        )
    return ", ".join(parts) or "Nothing was rolled out"


def _tiles(story: Story) -> str:
    figures = [
        (f"{story.predictions:,}", "predictions answered"),
        (f"{story.failed_inferences}", "of them failed"),
        (
            f"{story.rollback_ms} ms" if story.rollback_ms is not None else "none",
            "from the decision to the last device back",
        ),
        (f"{story.artifact_bytes / 1e6:.1f} MB", "of models and manifests sent"),
        (f"{(story.control_bytes + story.report_bytes) / 1e6:.1f} MB", "of messages sent"),
        (f"{story.duration_s:.0f} s", "for all of it"),
    ]
    return "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
        for value, what in figures
    )


def _timeline(samples: list[Sample], versions: list[str]) -> str:
    if len(samples) < 2:
        return ""
    first, last = samples[0].at_ms, samples[-1].at_ms
    span_ms = max(1, last - first)
    most = max(sum(sample.devices.values()) for sample in samples) or 1
    wide, high = WIDTH - LEFT - RIGHT, CHART_HEIGHT - TOP - BOTTOM

    def x(at_ms: float) -> float:
        return LEFT + wide * (at_ms - first) / span_ms

    def y(count: float) -> float:
        return TOP + high * (1 - count / most)

    areas = []
    floor = [0] * len(samples)
    for number, version in enumerate(versions):
        top = [
            base + sample.devices.get(version, 0)
            for base, sample in zip(floor, samples, strict=True)
        ]
        edge = _steps(samples, top, x, y)
        back = list(reversed(_steps(samples, floor, x, y)))
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in edge + back)
        areas.append(
            f'<polygon class="v{number}" points="{points}"><title>{escape(version)}</title>'
            "</polygon>"
        )
        floor = top
    seconds = span_ms / 1000
    step = next((size for size in (5, 10, 20, 30, 60, 120) if seconds / size <= 10), 300)
    marks = "".join(
        f'<text x="{x(first + second * 1000):.1f}" y="{CHART_HEIGHT - 10}" text-anchor="middle">'
        f"{second} s</text>"
        for second in range(0, int(seconds) + 1, step)
    )
    levels = "".join(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(count):.1f}" '
        f'y2="{y(count):.1f}"/><text x="{LEFT - 8}" y="{y(count) + 4:.1f}" text-anchor="end">'
        f"{count}</text>"
        for count in (0, most // 2, most)
    )
    return _svg(CHART_HEIGHT, levels + "".join(areas) + marks, "Devices by release over time")


def _steps(
    samples: list[Sample],
    counts: list[int],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> list[tuple[float, float]]:
    """Return the corners of a line that goes in steps: a count holds until the next sample."""
    points: list[tuple[float, float]] = []
    for index, (sample, count) in enumerate(zip(samples, counts, strict=True)):
        if index:
            points.append((x(sample.at_ms), y(counts[index - 1])))
        points.append((x(sample.at_ms), y(count)))
    return points


def _svg(height: int, body: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{body}</svg>'
    )


def _rollout(rollout: RolloutStory) -> str:
    rows = "".join(_stage(stage) for stage in rollout.stages)
    outcome = rollout.outcome.replace("_", " ")
    return (
        f"<h2>Rollout of {escape(rollout.version)}: "
        f'<span class="{escape(rollout.outcome)}">{escape(outcome)}</span></h2>'
        f"<p>{escape(rollout.why)}</p>"
        '<div class="table"><table><thead><tr><th>Stage</th><th>Devices</th><th>Took</th>'
        "<th>Verdict</th><th>What the gates saw</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _stage(stage: StageStory) -> str:
    took = ""
    if stage.began_ms is not None and stage.ended_ms is not None:
        took = f"{(stage.ended_ms - stage.began_ms) / 1000:.1f} s"
    gates = "<br>".join(_gate(gate) for gate in stage.gates)
    return (
        f"<tr><td>{escape(stage.name)}</td><td>{stage.devices or ''}</td><td>{took}</td>"
        f'<td class="{escape(stage.state)}">{escape(stage.state)}</td><td>{gates}</td></tr>'
    )


def _gate(gate: GateStory) -> str:
    return (
        f'<span class="{escape(gate.verdict)}">{escape(gate.verdict)}</span> '
        f"{escape(gate.gate.replace('_', ' '))}: {escape(gate.sentence)}"
    )


def _drift(story: Story, bad: RolloutStory | None) -> str:
    if bad is None or not story.distributions:
        return "No release was rolled back."
    return (
        f"Both arms saw the same kind of images at the same time, drawn by lot. The devices on "
        f"{bad.version} answered like this, the others like that:"
    )


def _distribution(item: Distribution) -> str:
    most = max([*item.candidate, *item.control, 1e-9])
    wide, high = WIDTH - LEFT - RIGHT, CHART_HEIGHT - TOP - BOTTOM
    slot = wide / max(1, len(item.labels))
    bar = min(28.0, slot * 0.36)
    bars = []
    for index, label in enumerate(item.labels):
        centre = LEFT + slot * (index + 0.5)
        for shares, colour, offset in (
            (item.control, "var(--good)", -bar - 1),
            (item.candidate, "var(--bad)", 1.0),
        ):
            tall = high * shares[index] / most
            bars.append(
                f'<rect x="{centre + offset:.1f}" y="{TOP + high - tall:.1f}" width="{bar:.1f}" '
                f'height="{tall:.1f}" rx="2" fill="{colour}"><title>{escape(label)}: '
                f"{shares[index]:.1%}</title></rect>"
            )
        bars.append(
            f'<text x="{centre:.1f}" y="{CHART_HEIGHT - 10}" text-anchor="middle">'
            f"{escape(label)}</text>"
        )
    axis = (
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{TOP + high}" y2="{TOP + high}"/>'
        f'<text x="{LEFT - 8}" y="{TOP + 10}" text-anchor="end">{most:.0%}</text>'
    )
    name = item.feature.replace("_", " ")
    return (
        f"<figure>{_svg(CHART_HEIGHT, axis + ''.join(bars), name)}<figcaption>Output "
        f"“{escape(name)}”, share of the answers."
        '<span class="key" style="background:var(--bad)"></span>candidate'
        '<span class="key" style="background:var(--good)"></span>control, at the same time'
        "</figcaption></figure>"
    )
