"""Writes a card as Markdown, for somebody who did not build the release.

Decides the order and the words. Everything that a pusher gave is escaped: no name or note of theirs
becomes markup, a link, a picture or another row of a table.
"""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fleet_server.releases.card.charts import clean
from fleet_server.releases.card.content import Card, WorstRow
from fleet_server.releases.card.plots import Plot
from fleet_server.releases.card.words import ABOUT_USE, AS_PUSHED, KINDS, RECIPES, TITLES
from fleet_server.releases.states import NOT_THE_TARGET

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~^$:@-])")
_TEXT_CHARACTERS = 2000
_ITEMS = 50


def text(value: object) -> str:
    """Return a value as one line of plain text that no renderer takes for markup."""
    line = " ".join(clean(str(value))[:_TEXT_CHARACTERS].split())
    return _MARKUP.sub(r"\\\1", html.escape(line, quote=False))


def render(card: Card, plots: Mapping[str, Plot]) -> str:
    """Return the card as Markdown; pictures are linked as ``plots/NAME.svg`` beside it."""
    parts = [
        _head(card),
        _use(card),
        _inputs_and_outputs(card),
        _origin(card),
        _small(card, plots),
        _difference(card, plots),
        _gates(card),
        _baseline(card, plots),
        _needs(card),
        _previous(card),
        _verify(card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(card: Card) -> str:
    data = card.metadata
    owner = data.get("owner") or _note(card, "owner")
    licence = data.get("license") or data.get("licence") or _note(card, "licence", "license")
    needs = card.needs
    agreed = card.comparison.agreement
    alike = (
        ""
        if agreed is None or card.recipe in AS_PUSHED
        else f" It names the same class as the float model on {agreed:.2%} of "
        f"{card.comparison.rows} test rows."
    )
    return (
        f"# {text(card.model)} {text(card.version)}\n\n"
        f"This is release {text(card.version)} of the model *{text(card.model)}* for edge devices: "
        f"{RECIPES.get(card.recipe, text(card.recipe))}, {_size(needs.artifact_bytes)} in place "
        f"of {_size(card.source_bytes)}.{alike} It takes {_tensors(card.inputs)} and returns "
        f"{_tensors(card.outputs)}: {KINDS.get(card.output_kind, text(card.output_kind))}. "
        f"Owner: {text(owner) if owner else '**not stated**'}. "
        f"Licence: {text(licence) if licence else '**not stated**'}."
    )


def _use(card: Card) -> str:
    notes = _mapping(card.metadata.get("notes"))
    rows = [(key, value) for key, value in notes.items() if key.lower() in ABOUT_USE]
    said = [f"- **{text(key)}**: {text(value)}" for key, value in rows[:_ITEMS]]
    if not said:
        said = [
            "The owner has not said what it is for and where its limits are. Push the next "
            "release with the notes `intended use` and `limits`."
        ]
    return "## What it is for\n\n" + "\n".join(said)


def _inputs_and_outputs(card: Card) -> str:
    rows = [
        (
            side,
            item.name,
            item.dtype,
            " x ".join("any" if n is None else str(n) for n in item.shape),
        )
        for side, specs in (("in", card.inputs), ("out", card.outputs))
        for item in specs
    ]
    found = "## What goes in and what comes out\n\nThe first axis is the batch.\n\n" + _table(
        ("Side", "Tensor", "Type", "Shape"), rows
    )
    for name, after in card.states.items():
        found += (
            f"\n\n*{text(name)}* is a state: what *{text(after)}* was at the step before. The "
            "application hands it on; differences of states are not counted below."
        )
    classes = [str(item) for item in card.metadata.get("classes", [])]
    if classes:
        more = f" and {len(classes) - _ITEMS} more" if len(classes) > _ITEMS else ""
        found += f"\n\nClasses, in order: {', '.join(map(text, classes[:_ITEMS]))}{more}."
    return found


def _origin(card: Card) -> str:
    proofs = card.proofs
    signer = text(proofs.signer) if proofs.signer else "nobody: the upload carried no signature"
    rows: list[tuple[str, str]] = [
        ("Float model (SHA-256)", f"`{proofs.source}`"),
        ("Signed by", signer),
    ]
    rows += [
        (f"{text(name)} examples (SHA-256)", f"`{digest}`")
        for name, digest in proofs.inputs.items()
        if name != "model"
    ]
    for name, value in _told(card.metadata):
        title = TITLES.get(name, name.replace("_", " ").capitalize())
        if isinstance(value, Mapping):
            rows += [
                (f"{text(title)}: {text(key)}", text(item))
                for key, item in list(value.items())[:_ITEMS]
            ]
        elif isinstance(value, list | tuple):
            rows.append((text(title), ", ".join(text(item) for item in value[:_ITEMS])))
        else:
            rows.append((text(title), text(value)))
    return "## Where it comes from\n\n" + _raw_table(("What", "Value"), rows)


def _small(card: Card, plots: Mapping[str, Plot]) -> str:
    rows = [
        (
            f"**{text(item.recipe)}** (ships)" if item.chosen else text(item.recipe),
            "" if item.size_bytes is None else _size(item.size_bytes),
            "" if item.agreement is None else f"{item.agreement:.2%}",
            "" if item.sqnr_db is None else f"{item.sqnr_db:.1f} dB",
            "" if item.largest_difference is None else f"{item.largest_difference:.4g}",
            ""
            if item.latency_us is None
            else f"{item.latency_us:.0f} µs (float {item.float_latency_us or 0:.0f} µs)",
            "yes" if item.passes else "no",
            text(item.note),
        )
        for item in card.candidates
    ]
    if card.recipe in AS_PUSHED:
        why = f"It ships as it was pushed: {text(card.reason) or 'nothing better was found'}."
    elif any(item.latency_us is not None for item in card.candidates):
        why = (
            f"*{text(card.recipe)}* ships: of those that agree with the float model well enough "
            "and are smaller and not slower, it is the fastest."
        )
    else:
        why = (
            f"*{text(card.recipe)}* ships: the first form that agreed with the float model well "
            "enough. A model this small is not searched further nor timed; neither size nor time "
            "would matter to a device."
        )
    found = f"## How it was made small\n\n{why}"
    if rows:
        titles = (
            *("Form", "Size", "Same class", "Signal to noise", "Largest difference"),
            *("One row takes", "Passes", "Note"),
        )
        found += "\n\n" + _raw_table(titles, rows)
        if timed := [item for item in card.candidates if item.latency_us is not None]:
            found += f"\n\nTimed on {text(timed[0].timed_on or NOT_THE_TARGET)}."
    return found + _pictures(plots, ("candidates-size", "candidates-latency"))


def _difference(card: Card, plots: Mapping[str, Plot]) -> str:
    if card.recipe in AS_PUSHED:
        return ""
    found = card.comparison
    agreed = (
        "" if found.agreement is None else f"Both name the same class on {found.agreement:.2%}. "
    )
    said = (
        "## How it differs from the float model\n\n"
        f"Both models ran on {found.rows} golden rows. {agreed}The signal-to-noise ratio of the "
        f"outputs is {found.sqnr_db:.1f} dB (every 6 dB halve the noise; below 10 dB a release is "
        f"refused), the largest difference {found.largest_difference:.4g}."
    )
    return said + _worst(found.worst) + _pictures(plots, ("confusion", "differences"))


def _worst(found: Sequence[WorstRow]) -> str:
    if not found:
        return ""
    said = "\n\nThe worst inputs: look at these rows of the golden examples (counted from 0) first."
    titles: tuple[str, ...] = ("Row", "Largest difference")
    rows: list[tuple[object, ...]] = [(item.row, f"{item.difference:.4g}") for item in found]
    if found[0].float_class:
        said += " Those on which the two name another class come before those that differ most."
        titles += ("Float says", "Shipped says")
        classes = [(item.float_class, item.shipped_class) for item in found]
        rows = [row + pair for row, pair in zip(rows, classes, strict=True)]
    return f"{said}\n\n{_table(titles, rows)}"


def _gates(card: Card) -> str:
    if not card.gates:
        return ""
    rows = [
        (
            item.gate,
            item.name.removesuffix("_bytes").removesuffix("_us").replace("_", " "),
            _figure(item.name, item.figure),
            _figure(item.name, item.bound),
            "passed" if item.passed else "overridden" if item.overridden else "failed",
            "; ".join(part for part in (item.note, item.overridden) if part),
        )
        for item in card.gates
    ]
    return (
        "## What it had to pass\n\nA release that fails one of these is not staged, unless "
        "somebody answers for it with a reason.\n\n"
        + _table(("Gate", "Figure", "Measured", "Bound", "Result", "Note"), rows)
    )


def _baseline(card: Card, plots: Mapping[str, Plot]) -> str:
    if not card.features:
        return ""
    rows = [
        (
            line.side,
            line.name,
            line.made_from,
            line.rows,
            line.missing,
            *(
                "" if number is None else f"{number:.4g}"
                for number in (line.minimum, line.mean, line.maximum)
            ),
        )
        for line in card.features
    ]
    names = [name for name in plots if name.startswith(("output-", "input-"))]
    return (
        "## What normal looks like\n\nOn the baseline examples, inputs and outputs were as below; "
        "devices are compared with it while a release rolls out.\n\n"
        + _table(("Side", "Feature", "Made from", "Rows", "Missing", "Least", "Mean", "Most"), rows)
        + _pictures(plots, names)
    )


def _needs(card: Card) -> str:
    needs = card.needs
    tools = ", ".join(f"{text(name)} {text(item)}" for name, item in sorted(needs.tools.items()))
    memory = (
        f"{needs.memory_bytes / 1024**2:.0f} MiB, measured in a process of its own, with a margin"
        if needs.memory_bytes
        else "not measured"
    )
    rows = [
        ("Runtime", text(needs.runtime)),
        ("Opset, IR version", f"{needs.opset}, {needs.ir_version}"),
        ("Memory", memory),
        ("numpy", f"{needs.numpy} or newer" if needs.numpy else "any that the agent runs with"),
        ("Download", _size(needs.artifact_bytes)),
        ("Precision", text(needs.precision)),
        ("Operators", ", ".join(text(item) for item in needs.operators)),
        ("Made and measured with", tools),
    ]
    others = [step.figures for step in card.steps if step.name == "variants"]
    rows += [
        (f"Instead, for {text(name)}", text(line)) for made in others for name, line in made.items()
    ]
    return "## What a device needs\n\n" + _raw_table(("What", "Value"), rows)


def _previous(card: Card) -> str:
    before = card.previous
    if before is None:
        return "## What is new\n\nThis is the first release of the model."
    old, new = before.needs, card.needs
    rows: list[tuple[object, ...]] = [
        ("download", _size(old.artifact_bytes), _size(new.artifact_bytes)),
        ("precision", old.precision, new.precision),
        ("memory", _mebibytes(old.memory_bytes), _mebibytes(new.memory_bytes)),
        ("opset", old.opset, new.opset),
    ]
    if before.agreement is not None or card.comparison.agreement is not None:
        shares = (before.agreement, card.comparison.agreement)
        rows.append(
            ("agreement with float", *("" if item is None else f"{item:.2%}" for item in shares))
        )
    old_figures, figures = (
        _mapping(data.get("metrics")) for data in (before.metadata, card.metadata)
    )
    for name in sorted({*old_figures, *figures})[:_ITEMS]:
        rows.append((f"metric {name}", old_figures.get(name, ""), figures.get(name, "")))
    return f"## What is new since {text(before.version)}\n\n" + _table(
        ("What", before.version, card.version), rows
    )


def _verify(card: Card) -> str:
    name, version = card.model, card.version
    rows = [
        ("Manifest", f"`{card.proofs.manifest}`"),
        ("Artifact", f"`{card.proofs.artifact}`"),
        ("Statement of origin", f"`{card.proofs.provenance}`"),
    ]
    return (
        "## How to check it\n\n"
        f"`edgefleet model provenance {name} {version}` verifies the signed statement of what this "
        "release was made of; with `--file model.onnx` it says whether a file is the one. On a "
        "device, `sha256sum` of the model file is the artifact's digest.\n\n"
        + _raw_table(("What", "SHA-256"), rows)
    )


def _pictures(plots: Mapping[str, Plot], names: Iterable[str]) -> str:
    shown = [name for name in names if name in plots]
    return "".join(
        f"\n\n![{text(plots[name].title)}. {text(plots[name].description)}](plots/{name}.svg)"
        for name in shown
    )


def _table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return _raw_table(titles, [tuple(text(cell) for cell in row) for row in rows])


def _raw_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _told(metadata: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What the pusher said and no other chapter shows, the known names first."""
    known = [name for name in TITLES if name in metadata]
    names = [*known, *(name for name in metadata if name not in TITLES and name != "classes")]
    told: list[tuple[str, Any]] = []
    for name in names:
        value = metadata[name]
        if name == "notes":
            notes = _mapping(value).items()
            value = {key: item for key, item in notes if key.lower() not in ABOUT_USE}
        if value not in (None, "", [], {}, ()):
            told.append((name, value))
    return told


def _note(card: Card, *names: str) -> str:
    notes = _mapping(card.metadata.get("notes"))
    return next((str(item) for key, item in notes.items() if key.lower() in names), "")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _tensors(specs: Sequence[Any]) -> str:
    named = [f"*{text(item.name)}*" for item in specs[:4]]
    return ", ".join(named) + (f" and {len(specs) - 4} more" if len(specs) > 4 else "")


def _figure(name: str, figure: float | None) -> str:
    """A figure in the unit that its name ends with."""
    if figure is None:
        return ""
    if name.endswith("_bytes"):
        return _size(round(figure))
    return f"{figure:.6g} us" if name.endswith("_us") else f"{figure:.6g}"


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 1024**2:.0f} MiB" if size_bytes else ""


def _size(size_bytes: int) -> str:
    kibibytes = size_bytes / 1024
    return f"{kibibytes:,.1f} KiB" if kibibytes < 1024 else f"{kibibytes / 1024:,.1f} MiB"
