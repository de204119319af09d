"""Guards the way from two staged releases to a patch that a device can use, and away again."""

from __future__ import annotations

import errno
import hashlib
import io
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet_contract.deltas.decoder import Decoder
from fleet_contract.deltas.form import patch_path
from fleet_contract.deltas.zstandard import zstd
from fleet_contract.manifest import artifact_path
from fleet_server.deltas import child, making
from fleet_server.errors import Unavailable

pytestmark = pytest.mark.slow

SIDE = 192
BASE = np.random.default_rng(3).normal(size=(SIDE, SIDE)).astype(np.float32) / SIDE
BASE += np.eye(SIDE, dtype=np.float32)


def model(weights: np.ndarray) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "weight"], ["logits"])],
        "classifier",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", SIDE])],
        initializer=[numpy_helper.from_array(weights, "weight")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def push(client: httpx.Client, version: str, weights: np.ndarray) -> str:
    """Push a release, wait until it is staged and return its artifact's digest."""
    file = io.BytesIO()
    np.savez(file, features=np.eye(SIDE, dtype=np.float32)[:64])
    files = {"model": model(weights), "calibration": file.getvalue(), "golden": file.getvalue()}
    where = f"/v1/models/detector/releases/{version}"
    answer = client.post("/v1/models/detector/releases", data={"version": version}, files=files)
    assert answer.status_code == 202, answer.text
    found = wait_for(
        lambda: client.get(where).json(), lambda release: release["state"] != "staging"
    )
    assert found["state"] == "staged", found["problem"]
    return str(found["manifest"]["variants"][0]["artifact"]["digest"])


def status_of(client: httpx.Client, where: str) -> int:
    """The answer's status; 0 if the file went away while it was sent."""
    try:
        return client.get(where).status_code
    except httpx.RemoteProtocolError:
        return 0


def wait_for(ask: Callable[[], Any], enough: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 60
    while not enough(found := ask()):
        assert time.monotonic() < deadline, repr(found)
        time.sleep(0.02)
    return found


def deltas(client: httpx.Client, version: str) -> list[dict[str, Any]]:
    answer = client.get(f"/v1/models/detector/releases/{version}/deltas")
    assert answer.status_code == 200, answer.text
    return list(answer.json()["deltas"])


def settled(found: list[dict[str, Any]]) -> bool:
    return bool(found) and all(delta["state"] != "waiting" for delta in found)


def apply(old: bytes, patch: bytes) -> bytes:
    read = io.BytesIO(patch).read
    return b"".join(Decoder(read).pieces(lambda at, size: old[at : at + size]))


def tuned(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=BASE.shape).astype(np.float32)
    return BASE * (1 + np.float32(0.003) * noise)


def noisy(seed: int) -> np.ndarray:
    """Weights of which no two seeds have anything in common, also in 8 bits."""
    weights = np.random.default_rng(seed).uniform(-1, 1, size=BASE.shape).astype(np.float32)
    np.fill_diagonal(weights, 2)
    return weights


def test_from_push_to_patch_and_away_again(start_server: Callable[..., Any]) -> None:
    server = start_server(delta_interval_ms=20)
    client = server.client
    old, new = push(client, "1.0.0", BASE), push(client, "1.1.0", tuned(1))
    [found] = wait_for(lambda: deltas(client, "1.1.0"), settled)
    assert (found["state"], found["old_digest"], found["new_digest"]) == ("made", old, new)
    assert found["patch_bytes"] < 0.4 * found["new_bytes"]

    where = f"/v1/store/{patch_path(old, new)}"
    patch = client.get(where)
    assert patch.status_code == 200
    assert len(patch.content) == found["patch_bytes"]
    artifact = client.get(f"/v1/store/{artifact_path('detector', old)}").content
    assert hashlib.sha256(apply(artifact, patch.content)).hexdigest() == new

    part = client.get(where, headers={"Range": "bytes=100-"})
    assert (part.status_code, part.content) == (206, patch.content[100:])
    assert part.headers["ETag"] == patch.headers["ETag"]
    assert server.anonymous.get(where).status_code == 401
    assert client.get(f"/v1/store/{patch_path(new, new)}").status_code == 404
    assert client.get("/v1/store/deltas/abc/def").status_code == 422

    metrics = client.get("/metrics").text
    assert "edgefleet_deltas_served 1.0" in metrics
    saved = found["new_bytes"] - found["patch_bytes"]
    assert f"edgefleet_deltas_saved_bytes {float(saved)}" in metrics

    # Two releases later nobody is led to 1.1.0 any more.
    push(client, "1.2.0", tuned(2))
    push(client, "1.3.0", tuned(3))
    wait_for(lambda: status_of(client, where), lambda status: status == 404)
    wait_for(lambda: deltas(client, "1.3.0"), lambda found: len(found) == 2 and settled(found))
    # One from 1.0.0 is left, too: devices may still have it.
    wait_for(lambda: deltas(client, "1.2.0"), lambda found: len(found) == 3 and settled(found))
    folder = server.settings.data_dir / making.FOLDER
    made = {delta["state"] for version in ("1.2.0", "1.3.0") for delta in deltas(client, version)}
    assert made == {"made"}
    counts = server.app.state.deltas.counts()
    wait_for(
        lambda: len([path for path in folder.rglob("*") if path.is_file()]),
        lambda count: count == len(deltas(client, "1.2.0")) + len(deltas(client, "1.3.0")),
    )
    assert counts["failed"] == 0
    audit = client.get("/v1/audit", params={"count": 100}).json()
    actions = [entry["action"] for entry in audit["entries"]]
    assert "delta.make" in actions
    assert "delta.drop" in actions


def test_unlike_releases_get_none_and_lost_ones_are_made_again(
    start_server: Callable[..., Any],
) -> None:
    server = start_server(delta_interval_ms=20)
    client = server.client
    push(client, "1.0.0", noisy(1))
    push(client, "2.0.0", noisy(2))
    [found] = wait_for(lambda: deltas(client, "2.0.0"), settled)
    assert found["state"] == "not_worth"
    none = client.get(f"/v1/store/{patch_path(found['old_digest'], found['new_digest'])}")
    assert none.status_code == 404

    new = push(client, "2.1.0", noisy(2) * np.float32(1.0001))
    wait_for(lambda: deltas(client, "2.1.0"), lambda found: len(found) == 2 and settled(found))
    first = next(item for item in deltas(client, "2.1.0") if item["old_version"] == "2.0.0")
    assert first["state"] == "made"
    where = f"/v1/store/{patch_path(first['old_digest'], new)}"
    patch = client.get(where).content
    # Not what is half made: the first that is missing is made again at once. Each is named before
    # any is removed, or one that is there again would be removed once more.
    there = list((server.settings.data_dir / making.FOLDER / "artifacts").glob("*/*"))
    for path in there:
        path.unlink(missing_ok=True)
    again = wait_for(lambda: client.get(where), lambda answer: answer.status_code == 200)
    assert again.content == patch


def maker_beside(server: Any, clock: Any) -> making.DeltaMaker:
    """In place of the server's own, which makes none by itself: it looks when it is told to."""
    state = server.app.state
    return making.DeltaMaker(
        server.settings.data_dir,
        state.database,
        state.staging.store,
        clock,
        fleet=server.settings.fleet,
        interval_ms=0,
    )


def test_what_failed_is_tried_again_but_not_at_once(
    start_server: Callable[..., Any], clock: Any
) -> None:
    server = start_server(delta_interval_ms=0)
    state = server.app.state
    old, _ = push(server.client, "1.0.0", BASE), push(server.client, "1.1.0", tuned(1))
    maker = maker_beside(server, clock)
    artifact = state.staging.store.find(artifact_path("detector", old)).path
    aside = artifact.rename(artifact.with_suffix(".aside"))
    assert maker.tick() == 2
    assert {item["state"] for item in deltas(server.client, "1.1.0")} == {"failed"}
    aside.rename(artifact)
    clock.wall_ms += making.RETRY_MS - 1
    assert maker.tick() == 0
    clock.wall_ms += 1
    assert maker.tick() == 2
    assert {item["state"] for item in deltas(server.client, "1.1.0")} == {"made"}
    assert maker.tick() == 0


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), Unavailable("away", "It is.")])
def test_full_disk_or_store_that_is_away_costs_a_patch_a_day(
    start_server: Callable[..., Any], clock: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    server = start_server(delta_interval_ms=0)
    push(server.client, "1.0.0", BASE)
    push(server.client, "1.1.0", tuned(1))
    maker = maker_beside(server, clock)

    def refuse(*_: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(maker.patches, "put_artifact", refuse)
        assert maker.tick() == 1
    # The others would fail likewise: none is tried, and none is called a failure.
    assert maker.tick() == 0
    assert deltas(server.client, "1.1.0") == []
    assert maker.counts()["waiting"] == 2
    later_ms = clock.monotonic_ms() + making.PAUSE_MS
    monkeypatch.setattr(clock, "monotonic_ms", lambda: later_ms)
    assert maker.tick() == 2
    assert {item["state"] for item in deltas(server.client, "1.1.0")} == {"made"}


def test_patch_that_is_half_made_fills_the_memory_or_stays(
    start_server: Callable[..., Any], clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server(delta_interval_ms=0)
    push(server.client, "1.0.0", BASE)
    push(server.client, "1.1.0", tuned(1))
    folder = server.settings.data_dir / making.FOLDER / "half-made"
    (folder / "of-a-killed-server").mkdir(parents=True)
    # Where temporary files may lie in memory, there is no room for patches.
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "nowhere"))
    maker = maker_beside(server, clock)
    maker.start()
    assert maker.tick() == 2
    assert {item["state"] for item in deltas(server.client, "1.1.0")} == {"made"}
    assert list(folder.iterdir()) == []


def test_no_interval_no_patches(start_server: Callable[..., Any]) -> None:
    before = set(threading.enumerate())
    server = start_server(delta_interval_ms=0)
    server.client.get("/health")
    assert server.app.state.deltas.counts()["made"] == 0
    fresh = set(threading.enumerate()) - before
    assert "deltas" not in {thread.name for thread in fresh}


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (b"", b"", 3),
        (b"", b"x" * 5000, 0),
        (bytes(5000), b"", 3),
        (np.random.default_rng(1).bytes(9000), np.random.default_rng(2).bytes(9000), 3),
        (model(BASE), model(tuned(1)), 0),
    ],
)
def test_child_leaves_a_right_patch_or_says_why_not(
    tmp_path: Path, old: bytes, new: bytes, code: int
) -> None:
    paths = [tmp_path / name for name in ("old", "new", "patch")]
    paths[0].write_bytes(old)
    paths[1].write_bytes(new)
    done = subprocess.run([sys.executable, "-m", child.__name__, *map(str, paths)], check=False)
    assert done.returncode == code
    if code == 0:
        assert apply(old, paths[2].read_bytes()) == new
        assert not (tmp_path / "patch.again").exists()


@pytest.mark.parametrize("spread", [1, 3, 5, 8])
def test_unlike_models_cost_hardly_more_than_the_compressed_file(
    tmp_path: Path, spread: int
) -> None:
    """Trained anew: subtracting would add noise to noise. Full compression is in the form, too."""
    paths = [tmp_path / name for name in ("old", "new", "patch")]
    for seed, path in enumerate(paths[:2]):
        weights = np.random.default_rng(seed).normal(0, spread, (500, 600)).round()
        path.write_bytes(model(weights.astype(np.int8)))
    subprocess.run([sys.executable, "-m", child.__name__, *map(str, paths)], check=True)
    new, patch = paths[1].read_bytes(), paths[2].read_bytes()
    assert apply(paths[0].read_bytes(), patch) == new
    assert len(patch) <= 1.02 * len(zstd.compress(new, level=19))
