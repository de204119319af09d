"""Guards from cards that nobody gets, that strangers get, or that were changed in the store."""

from typing import Any

import pytest

PATH = "/v1/models/detector/releases/1.0.0/card"


@pytest.fixture
def staged(push: Any, bench: Any) -> None:
    assert push(metadata='{"notes": {"limits": "by <day>"}}').status_code == 202
    assert bench.settled().state == "staged"


@pytest.mark.usefixtures("staged")
def test_card_in_all_its_forms(client: Any, bench: Any) -> None:
    found = client.get(PATH).json()
    card = found["card"]
    assert found["digest"] == bench.record().card
    assert (card["model"], card["version"]) == ("detector", "1.0.0")
    assert card["proofs"]["manifest"] == bench.record().digest
    assert card["needs"]["memory_bytes"] >= 16 * 1024**2
    assert card["needs"]["memory_bytes"] % (16 * 1024**2) == 0
    assert {"numpy", "onnx", "onnxruntime"} <= set(card["needs"]["tools"])
    page = client.get(f"{PATH}.md")
    assert page.headers["content-type"] == "text/markdown; charset=utf-8"
    assert "by &lt;day&gt;" in page.text
    for name in found["plots"]:
        assert f"](card/plots/{name}.svg)" in page.text
        plot = client.get(f"{PATH}/plots/{name}.svg")
        assert plot.headers["content-type"] == "image/svg+xml"
        assert "default-src 'none'" in plot.headers["content-security-policy"]
    assert client.get(f"{PATH}/plots/none.svg").json()["type"].endswith(":no_such_plot")


@pytest.mark.usefixtures("staged")
def test_card_changed_in_the_store(client: Any, bench: Any) -> None:
    (file,) = (bench.folder / "store" / "cards").rglob("*.json")
    file.write_bytes(file.read_bytes().replace(b"limits", b"praise"))
    assert client.get(PATH).json()["type"].endswith(":card_lost")
    assert client.anonymous().get(PATH).status_code == 401


def test_release_without_a_card(client: Any, push: Any, bench: Any) -> None:
    assert push(model=b"nothing").status_code == 202
    assert bench.settled().state == "refused"
    assert client.get(PATH).json()["type"].endswith(":no_card")
