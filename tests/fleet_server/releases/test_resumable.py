"""Guards from an upload that is taken for whole and is not, or that is somebody else's."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_server.errors import Conflict, Full, Invalid, NotFound, TooLarge, TooManyAttempts
from fleet_server.releases import limits, room
from fleet_server.releases.resumable import EXPIRY_MS, MOST_UPLOADS, ResumableUploads
from fleet_server.releases.room import RESERVE_BYTES

PLENTY = RESERVE_BYTES * 4
DATA = bytes(range(256)) * 4
DIGEST = hashlib.sha256(DATA).hexdigest()
IDS = [f"{number:032x}" for number in range(20)]


def uploads_in(folder: Path, *, room_bytes: int = PLENTY, most: int = 10_000) -> ResumableUploads:
    return ResumableUploads(folder / "uploads", most_bytes=most, free=lambda _: room_bytes)


def begin(uploads: ResumableUploads, owner: str = "ann", number: int = 0) -> str:
    view, _ = uploads.begin(owner, "golden", len(DATA), DIGEST, upload_id=IDS[number], now_ms=1_000)
    return view.id


def append(uploads: ResumableUploads, name: str, offset: int, data: bytes) -> None:
    with uploads.appending("ann", name, offset) as write:
        write(data)


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=6), restarts=st.booleans())
def test_any_sequence_of_cuts_ends_in_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], restarts: bool
) -> None:
    folder = tmp_path_factory.mktemp("cuts")
    uploads = uploads_in(folder)
    name = begin(uploads)
    for cut in sorted(cuts):
        offset = uploads.view("ann", name).offset_bytes
        with pytest.raises(KeyboardInterrupt), uploads.appending("ann", name, offset) as write:
            write(DATA[offset:cut])
            raise KeyboardInterrupt  # what arrived before the cut counts
        if restarts:
            uploads = uploads_in(folder)
        view = uploads.view("ann", name)
        assert (view.offset_bytes, view.complete) == (max(cut, offset), False)
        with pytest.raises(Conflict):
            uploads.claim("ann", name, "golden", folder / "taken")
    offset = uploads.view("ann", name).offset_bytes
    append(uploads, name, offset, DATA[offset:])
    assert uploads.finish("ann", name).complete
    uploads.claim("ann", name, "golden", folder / "taken")
    assert (folder / "taken").read_bytes() == DATA


def test_replayed_and_overlapping_pieces(tmp_path: Path) -> None:
    uploads = uploads_in(tmp_path)
    name = begin(uploads)
    append(uploads, name, 0, DATA[:100])
    for wrong in (0, 99, 101, len(DATA)):
        with pytest.raises(Conflict, match="100 bytes"), uploads.appending("ann", name, wrong):
            pytest.fail("opened at a wrong offset")
    append(uploads, name, 100, DATA[100:])
    uploads.finish("ann", name)
    with pytest.raises(Conflict, match="complete"), uploads.appending("ann", name, len(DATA)):
        pytest.fail("opened though complete")


def test_older_append_writes_nothing_more_once_somebody_asked(tmp_path: Path) -> None:
    uploads = uploads_in(tmp_path)
    name = begin(uploads)
    with uploads.appending("ann", name, 0) as write:
        write(DATA[:10])
        assert uploads.view("ann", name).offset_bytes == 10
        with pytest.raises(Conflict, match="goes on"):
            write(DATA[10:20])
    assert uploads.view("ann", name).offset_bytes == 10


def test_other_bytes_than_announced_leave_nothing(tmp_path: Path) -> None:
    uploads = uploads_in(tmp_path)
    name = begin(uploads)
    append(uploads, name, 0, DATA[:-1] + b"!")
    with pytest.raises(Invalid, match="SHA-256"):
        uploads.finish("ann", name)
    assert list((tmp_path / "uploads").iterdir()) == []
    with pytest.raises(NotFound):
        uploads.view("ann", name)


def test_more_bytes_than_announced(tmp_path: Path) -> None:
    uploads = uploads_in(tmp_path)
    name = begin(uploads)
    append(uploads, name, 0, DATA[:-1])
    with pytest.raises(TooLarge):
        append(uploads, name, len(DATA) - 1, b"!!")
    assert uploads.view("ann", name).offset_bytes == len(DATA) - 1


def test_upload_of_somebody_else(tmp_path: Path) -> None:
    uploads = uploads_in(tmp_path)
    name = begin(uploads)
    stranger: list[Callable[[], object]] = [
        lambda: uploads.view("bob", name),
        lambda: uploads.finish("bob", name),
        lambda: uploads.drop("bob", name),
        lambda: uploads.claim("bob", name, "golden", tmp_path / "x"),
        lambda: uploads.appending("bob", name, 0).__enter__(),
    ]
    for attempt in stranger:
        with pytest.raises(NotFound):
            attempt()
    # The same file of another operator is another upload: nobody learns who has which file.
    assert begin(uploads, "bob", 1) != name
    assert [view.owner for view in uploads.of("bob")] == ["bob"]


def test_too_many_and_too_large(tmp_path: Path) -> None:
    uploads = uploads_in(tmp_path, most=MOST_UPLOADS * 10 + 5)
    for number in range(MOST_UPLOADS):
        digest = f"{number:064x}"
        uploads.begin("ann", "golden", 10, digest, upload_id=IDS[number], now_ms=1)
    with pytest.raises(TooManyAttempts):
        uploads.begin("ann", "golden", 1, DIGEST, upload_id=IDS[18], now_ms=1)
    uploads.drop("ann", IDS[0])
    with pytest.raises(TooManyAttempts):
        uploads.begin("ann", "golden", 16, DIGEST, upload_id=IDS[18], now_ms=1)
    for field, most in (("model", limits.MODEL_BYTES), ("golden", limits.ARRAYS_BYTES)):
        with pytest.raises(TooLarge):
            uploads.begin("bob", field, most + 1, DIGEST, upload_id=IDS[18], now_ms=1)


def test_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = uploads_in(tmp_path, room_bytes=RESERVE_BYTES + len(DATA) - 1)
    with pytest.raises(Full):
        begin(uploads)
    assert list((tmp_path / "uploads").iterdir()) == []
    uploads = uploads_in(tmp_path)
    name = begin(uploads)
    append(uploads, name, 0, DATA[:10])

    def no_space(_handle: int, _data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "write", no_space)
        with pytest.raises(Full):
            append(uploads, name, 10, DATA[10:])
    # With room again it goes on where it stopped.
    append(uploads, name, 10, DATA[10:])
    assert uploads.finish("ann", name).complete


def test_what_two_uploads_promise_counts_together(tmp_path: Path) -> None:
    uploads = uploads_in(tmp_path, room_bytes=RESERVE_BYTES + len(DATA) + 10)
    begin(uploads)
    with pytest.raises(Full):
        uploads.begin("bob", "golden", 11, "0" * 64, upload_id=IDS[1], now_ms=1)


def test_upload_that_is_dropped_while_bytes_arrive(tmp_path: Path) -> None:
    uploads = uploads_in(tmp_path)
    name = begin(uploads)
    with uploads.appending("ann", name, 0) as write:
        write(DATA[:10])
        uploads.drop("ann", name)
        with pytest.raises(Conflict, match="goes on"):
            write(DATA[10:20])
    with pytest.raises(NotFound):
        uploads.finish("ann", name)
    assert list((tmp_path / "uploads").iterdir()) == []
    assert begin(uploads) == name  # anew, from nothing
    assert uploads.view("ann", name).offset_bytes == 0


def test_asking_while_it_becomes_whole(tmp_path: Path) -> None:
    uploads = uploads_in(tmp_path)
    wrong: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                uploads.of("ann")
        except BaseException as error:
            wrong.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    for _ in range(50):
        name = begin(uploads)
        append(uploads, name, 0, DATA)
        assert uploads.finish("ann", name).complete
        uploads.drop("ann", name)
    done.set()
    asker.join(10)
    assert wrong == []


def test_abandoned_upload_expires(tmp_path: Path) -> None:
    uploads = uploads_in(tmp_path)
    name = begin(uploads)
    expires_ms = uploads.view("ann", name).expires_ms
    touched_ms = (tmp_path / "uploads" / name / "part").stat().st_mtime_ns // 1_000_000
    assert expires_ms == touched_ms + EXPIRY_MS
    assert uploads.sweep(expires_ms - 1) == []
    assert [view.id for view in uploads.sweep(expires_ms)] == [name]
    assert list((tmp_path / "uploads").iterdir()) == []


def test_leftovers_of_a_crash_are_swept_at_the_start(tmp_path: Path) -> None:
    kept = begin(uploads_in(tmp_path))
    folder = tmp_path / "uploads"
    (folder / "fresh-0").mkdir()
    (folder / IDS[5]).mkdir()
    (folder / IDS[6]).mkdir()
    (folder / IDS[6] / "plan.json").write_bytes(b"{")
    uploads_in(tmp_path)
    assert [place.name for place in folder.iterdir()] == [kept]


def test_disk_that_refuses_for_another_reason() -> None:
    with pytest.raises(OSError, match="broken"), room.room():
        raise OSError(errno.EIO, "broken")


# -- over HTTP ---------------------------------------------------------------------------------


def piece(client: Any, place: str, offset: int, data: bytes, **headers: str) -> Any:
    given = {
        "Upload-Offset": str(offset),
        "Content-Type": "application/partial-upload",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    return client.request("PATCH", place, content=data, headers={**client.headers, **given})


def put(client: Any, field: str, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    body = {"field": field, "size_bytes": len(data), "sha256": digest}
    answer = client.post("/v1/uploads", json=body)
    assert answer.status_code == 201, answer.text
    place: str = answer.headers["location"]
    assert client.post("/v1/uploads", json=body).status_code == 200
    half = len(data) // 2
    assert piece(client, place, 0, data[:half]).headers["upload-complete"] == "?0"
    wrong = piece(client, place, 0, data[:half])
    assert (wrong.status_code, wrong.headers["upload-offset"]) == (409, str(half))
    assert wrong.headers["content-type"] == "application/problem+json"
    assert client.request("HEAD", place).headers["upload-offset"] == str(half)
    assert piece(client, place, half, data[half:]).headers["upload-complete"] == "?1"
    return place.rsplit("/", 1)[1]


def test_release_of_files_that_came_in_pieces(
    bench: Any, client: Any, classifier: Any, npz: Any, rows: Any
) -> None:
    model = classifier().SerializeToString()
    form = {
        "version": "1.0.0",
        "model_upload": put(client, "model", model),
        "calibration_upload": put(client, "calibration", npz(features=rows())),
    }
    files = {name: (None, text) for name, text in form.items()}
    golden = {"golden": ("golden", npz(features=rows(seed=6)))}
    answer = client.post("/v1/models/detector/releases", files={**files, **golden})
    assert answer.status_code == 202, answer.text
    record = bench.settled()
    assert record.state == "staged"
    assert record.manifest.lineage.source == hashlib.sha256(model).hexdigest()
    # They belong to the release now.
    assert client.get("/v1/uploads").json() == {"uploads": []}
    assert list((bench.folder / "uploads").iterdir()) == []


def test_large_model_of_a_variant_comes_in_pieces(
    bench: Any, client: Any, classifier: Any, npz: Any, rows: Any
) -> None:
    model = classifier().SerializeToString()
    variants = '[{"name": "pi4", "machines": ["aarch64"], "recipe": "float", "file": "variant-1"}]'
    files = {
        "version": (None, "1.0.0"),
        "variants": (None, variants),
        "variant-1_upload": (None, put(client, "variant-1", model)),
        "model": ("m", model),
        "calibration": ("c", npz(features=rows())),
        "golden": ("g", npz(features=rows(seed=6))),
    }
    answer = client.post("/v1/models/detector/releases", files=files)
    assert answer.status_code == 202, answer.text
    record = bench.settled()
    assert record.state == "staged", record.problem
    assert record.manifest.variants[0].name == "pi4"
    assert client.get("/v1/uploads").json() == {"uploads": []}


def test_release_that_is_refused_leaves_its_uploads(
    bench: Any, client: Any, classifier: Any, npz: Any, rows: Any
) -> None:
    whole = put(client, "model", classifier().SerializeToString())
    begun = client.post(
        "/v1/uploads", json={"field": "golden", "size_bytes": 5, "sha256": "0" * 64}
    ).json()["id"]
    data = {"calibration": ("c", npz(features=rows())), "golden": ("g", npz(features=rows()))}
    for reference, named, status in (
        ("model_upload", begun, 422),
        ("golden_upload", whole, 422),
        ("golden_upload", begun, 422),
        ("model_upload", "f" * 32, 404),
        ("model_upload", "../" * 5, 404),
    ):
        files = {"version": (None, "1.0.0"), reference: (None, named), **data}
        answer = client.post("/v1/models/detector/releases", files=files)
        assert answer.status_code == status, (reference, named, answer.text)
    unfinished = {
        "version": (None, "1.0.0"),
        "model_upload": (None, whole),
        "golden_upload": (None, begun),
        "calibration": data["calibration"],
    }
    assert client.post("/v1/models/detector/releases", files=unfinished).status_code == 409
    assert list((bench.folder / "incoming").iterdir()) == []
    assert len(client.get("/v1/uploads").json()["uploads"]) == 2


def test_upload_over_http_by_somebody_else(client: Any) -> None:
    body = {"field": "golden", "size_bytes": 5, "sha256": "0" * 64}
    place = client.post("/v1/uploads", json=body).headers["location"]
    made = client.post("/v1/tokens", json={"user": "bob", "roles": ["operator"]})
    assert made.status_code == 201, made.text
    bob = type(client)(client.app, {"Authorization": f"Bearer {made.json()['token']}"})
    assert bob.request("HEAD", place).status_code == 404
    assert piece(bob, place, 0, b"12345").status_code == 404
    assert bob.request("DELETE", place).status_code == 404
    assert bob.get("/v1/uploads").json() == {"uploads": []}
    assert client.request("DELETE", place).status_code == 204
    assert client.request("HEAD", place).status_code == 404


def test_piece_without_offset_or_of_another_kind(client: Any) -> None:
    body = {"field": "golden", "size_bytes": 5, "sha256": "0" * 64}
    place = client.post("/v1/uploads", json=body).headers["location"]
    for wrong in ({"Upload_Offset": "-1"}, {"Upload_Offset": ""}, {"Content_Type": "text/plain"}):
        assert piece(client, place, 0, b"1", **wrong).status_code == 422
    assert piece(client, place, 0, b"123456").status_code == 413
    assert client.request("HEAD", place).headers["upload-offset"] == "0"
    mismatch = piece(client, place, 0, b"12345")
    assert mismatch.json()["type"].endswith(":digest_mismatch")


def test_full_disk_over_http(client: Any) -> None:
    client.app.state.uploads._free = lambda _folder: 0
    body = {"field": "golden", "size_bytes": 5, "sha256": "0" * 64}
    answer = client.post("/v1/uploads", json=body)
    assert answer.status_code == 507, answer.text
    assert answer.json()["type"].endswith(":disk_full")
    assert client.get("/v1/uploads").json() == {"uploads": []}


def test_form_that_would_fill_the_disk(
    bench: Any, client: Any, push: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = shutil.disk_usage(bench.folder)._replace(free=RESERVE_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: left)
    answer = push()
    assert (answer.status_code, answer.json()["type"][-9:]) == (507, "disk_full")
    assert list((bench.folder / "incoming").iterdir()) == []
