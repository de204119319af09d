"""Guards from cards that lie, that let a pusher write parts of them, or that nobody can read."""

import html
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest

from fleet_contract.manifest import TensorSpec
from fleet_server.releases import parity
from fleet_server.releases.card import bundle, gather, markdown, plots, words
from fleet_server.releases.card.content import Card, FeatureLine, Needs, Previous, Proofs, StepLine
from fleet_server.releases.examples import Rows
from fleet_server.releases.states import Candidate, OutputKind, Recipe, Step

EVIL = (
    "</title><script>alert(1)</script> | cell | ![x](http://evil/x.png) [y](javascript:z) `c` *b*\n"
    "# Heading\n| a | b |\n\x1b[31m\u202egnp"
)
OUTPUT = TensorSpec("scores", "float32", [None, 3])
NEEDS = Needs(2048, "int8", "onnxruntime", 17, 8, ["Gemm"], 16 << 20, {"numpy": "2.4.6"})


def _comparison(shipped_rows: list[list[float]]) -> Any:
    reference: Rows = {"scores": np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]}
    shipped: Rows = {"scores": np.array(shipped_rows, dtype=np.float32)}
    found = parity.compare(reference, shipped, [OUTPUT], OutputKind.LOGITS)
    return gather.compare(reference, shipped, found, OutputKind.LOGITS, ["a", "b", "c"])


@pytest.fixture
def card() -> Card:
    return Card(
        model="detector",
        version="1.1.0",
        created_ms=1_000,
        output_kind="logits",
        source_bytes=8192,
        recipe="static",
        reason="",
        inputs=[TensorSpec("pixels", "float32", [None, 4])],
        outputs=[OUTPUT],
        metadata={"notes": {"limits": "not at night"}, "owner": "Ann", "licence": "MIT"},
        candidates=[
            Candidate(
                "static", True, True, 2048, 0.75, 20.0, 0.5, latency_us=3.0, float_latency_us=6.0
            ),
            Candidate("dynamic", False, False, 2049, 0.5, 5.0, 0.9),
        ],
        comparison=_comparison([[1, 0, 0], [0, 0.9, 0], [0, 0, 1], [0.4, 0.5, 0]]),
        gates=gather.gates([Step("parity", 1, {"agreement": 0.75, "least_agreement": 0.7})]),
        steps=[],
        features=[
            FeatureLine("output", "class", "top class", 4, 0, labels=["a", "b"], shares=[0.5, 0.5]),
            FeatureLine("input", "x", "column 0", 4, 0, -1.0, 1.0, 0.0, [], [0.25, 0.5, 0.25]),
        ],
        needs=NEEDS,
        previous=None,
        proofs=Proofs("a" * 64, "b" * 64, "c" * 64, "d" * 64, {"golden": "e" * 64}),
    )


def _text(card: Card) -> str:
    return bundle.read(bundle.render(card)).markdown


def test_card_says_on_what_was_timed(card: Card) -> None:
    assert "Timed on the server's processor, not the target" in _plain(card)
    where = "bench device pi (hardware=pi4)"
    timed = msgspec.structs.replace(card.candidates[0], timed_on=where)
    told = msgspec.structs.replace(card, candidates=[timed, *card.candidates[1:]])
    assert f"Timed on {where}." in _plain(told)
    assert plots.draw(told)["candidates-latency"].title.endswith(f"against float, on {where}")
    assert "not the target" in plots.draw(card)["candidates-latency"].title


def _plain(card: Card) -> str:
    """The text without its escapes."""
    return html.unescape(_text(card)).replace("\\", "")


def test_same_card_gives_the_same_bytes(card: Card) -> None:
    assert bundle.render(card) == bundle.render(card)
    assert bundle.read(bundle.render(card)).card == card


def test_worst_inputs_are_hidden(card: Card) -> None:
    worst = card.comparison.worst
    assert [item.row for item in worst] == [3, 1]
    assert (worst[0].float_class, worst[0].shipped_class) == ("a", "b")
    assert card.comparison.confusion == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert sum(card.comparison.histogram) == 4
    assert "| 3 | 0.6 | a | b |" in _text(card)


def test_row_that_changes_its_class_hides_behind_larger_differences() -> None:
    found = _comparison([[3, 0, 0], [0, 1, 0], [0, 0, 1], [0.45, 0.5, 0]])
    assert [(item.row, item.shipped_class) for item in found.worst] == [(3, "b"), (0, "a")]


def test_difference_of_a_state_passes_for_one_of_the_answer(card: Card) -> None:
    reference: Rows = {"speech": np.zeros((4, 1)), "memory": np.zeros((4, 1))}
    shipped: Rows = {"speech": np.array([[0.0], [0.1], [0], [0]]), "memory": np.full((4, 1), 19.0)}
    specs = [TensorSpec(name, "float32", [None, 1]) for name in reference]
    found = parity.compare(reference, shipped, specs, OutputKind.VALUES)
    compared = gather.compare(reference, shipped, found, OutputKind.VALUES, [], states=["memory"])
    assert compared.largest_difference == 0.1
    assert [item.row for item in compared.worst] == [1]
    said = _text(
        msgspec.structs.replace(card, comparison=compared, states={"memory_before": "memory"})
    )
    assert "what *memory* was at the step before" in said
    assert "| 1 | 0.1 |" in said and "Float says" not in said


def test_models_without_classes_or_differences() -> None:
    rows: Rows = {"scores": np.zeros((20, 3), dtype=np.float32)}
    found = parity.compare(rows, rows, [OUTPUT], OutputKind.VALUES)
    compared = gather.compare(rows, rows, found, OutputKind.VALUES, [])
    assert (compared.worst, compared.confusion, compared.histogram) == ([], [], [])


def test_figure_without_its_bound(card: Card) -> None:
    assert [(gate.figure, gate.bound, gate.passed) for gate in card.gates] == [(0.75, 0.7, True)]
    assert "| parity | agreement | 0\\.75".replace("\\.", ".") in _text(card)


@pytest.mark.parametrize(
    "where", ["notes", "key", "unknown", "owner", "classes", "input", "signer"]
)
def test_pusher_writes_markup(card: Card, where: str) -> None:
    given: dict[str, dict[str, Any]] = {
        "notes": {"notes": {"x": EVIL, "limits": EVIL}},
        "key": {"notes": {EVIL: "x"}},
        "unknown": {EVIL: [EVIL], "trained_by": {EVIL: EVIL}},
        "owner": {"owner": EVIL, "licence": EVIL},
        "classes": {"classes": [EVIL]},
    }
    data = given.get(where, {})
    changed = msgspec.structs.replace(card, metadata=data)
    if where == "input":
        changed = msgspec.structs.replace(changed, inputs=[TensorSpec(EVIL, "float32", [None])])
    if where == "signer":
        changed = msgspec.structs.replace(
            changed, proofs=msgspec.structs.replace(card.proofs, signer=EVIL)
        )
    found = _text(changed)
    assert "alert" in found
    for markup in (
        "<script",
        "![x]",
        "](javascript",
        "`c`",
        "*b*",
        "\n# Heading",
        "\x1b",
        "\u202e",
    ):
        assert markup not in found
    plain = _text(msgspec.structs.replace(card, metadata={}))
    titles = [line for line in plain.splitlines() if line.startswith("#")]
    assert [line for line in found.splitlines() if line.startswith("#")] == titles
    # No cell more than the table has: a pipe of theirs is escaped.
    for line in found.splitlines():
        if "alert" in line and line.startswith("| "):
            assert line.replace(r"\|", "").count("|") in {3, 5, 7}


def test_pusher_draws(card: Card) -> None:
    lines = [FeatureLine("output", EVIL, EVIL, 4, 0, labels=[EVIL, "b"], shares=[0.5, 0.5])]
    comparison = msgspec.structs.replace(card.comparison, classes=[EVIL, "b", "c"])
    changed = msgspec.structs.replace(card, features=lines, comparison=comparison)
    for plot in plots.draw(changed).values():
        tags = {item.tag.rsplit("}", 1)[-1] for item in ElementTree.fromstring(plot.svg).iter()}
        assert tags <= {"svg", "title", "desc", "style", "text", "rect", "path"}


def test_picture_that_says_nothing_to_who_cannot_see(card: Card) -> None:
    drawn = plots.draw(card)
    assert list(drawn) == [
        "candidates-size",
        "candidates-latency",
        "confusion",
        "differences",
        "output-0",
        "input-0",
    ]
    text = _text(card)
    for name, plot in drawn.items():
        root = ElementTree.fromstring(plot.svg)
        assert root[0].text == plot.title
        assert root[1].text == plot.description
        assert "prefers-color-scheme:dark" in plot.svg
        assert f"](plots/{name}.svg)" in text


def test_artifact_for_some_devices_only_is_left_out(card: Card) -> None:
    said = _text(
        msgspec.structs.replace(
            card, steps=[StepLine("variants", 9, {"pi4": "onnxruntime float16, 4096 bytes"})]
        )
    )
    assert "| Instead, for pi4 | onnxruntime float16, 4096 bytes |" in said


def test_first_release_and_the_next(card: Card) -> None:
    assert "first release" in _text(card)
    before = Previous("1.0.0", NEEDS, 0.99, {"metrics": {"auc": 0.9}})
    now = {**card.metadata, "metrics": {"auc": 0.91}}
    text = _text(msgspec.structs.replace(card, previous=before, metadata=now))
    assert "| agreement with float | 99.00% | 75.00% |" in text
    assert "| metric auc | 0.9 | 0.91 |" in text


def test_owner_and_licence_left_out(card: Card) -> None:
    text = _text(msgspec.structs.replace(card, metadata={}))
    assert "Owner: **not stated**. Licence: **not stated**." in text
    assert markdown.text("a|b") == "a\\|b"


@pytest.mark.parametrize("recipe", ["float", "given"])
def test_model_that_ships_as_it_came_is_compared_with_nothing(card: Card, recipe: str) -> None:
    said = _text(msgspec.structs.replace(card, recipe=recipe, reason="it was quantised before"))
    assert "It ships as it was pushed: it was quantised before." in said
    for claim in ("same class as the float model", "first form that agreed", "How it differs"):
        assert claim not in said


def test_every_recipe_is_named_in_words() -> None:
    # A reader of the card does not know what "mixed-layers" is.
    assert set(words.RECIPES) == set(Recipe)
