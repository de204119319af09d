"""Guards from uploads and downloads that ask for what they must not have."""

import io
import json
import threading
import zipfile
from typing import Any

import numpy as np
import pytest

from fleet_contract.manifest import artifact_path
from fleet_server.releases import pipeline

WAIT_S = 60.0


def _refused(response: Any, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"].endswith(f":{code}"), response.text


def _nothing_left(bench: Any, client: Any) -> None:
    assert list((bench.folder / "incoming").iterdir()) == []
    assert client.get("/v1/models").json() == {"models": []}
    assert bench.stored() == []


def test_push_is_answered_at_once_and_staged_behind(bench: Any, client: Any, push: Any) -> None:
    response = push(metadata='{"classes": ["a", "b", "c"], "notes": {"by": "Ann"}}')
    assert response.status_code == 202, response.text
    assert response.headers["location"] == "/v1/models/detector/releases/1.0.0"
    assert response.json()["state"] == "staging"
    bench.settled()
    release = client.get(response.headers["location"]).json()
    assert (release["state"], release["notes"]) == ("staged", {"by": "Ann"})
    assert [step["name"] for step in release["steps"]] == list(pipeline.STEPS)
    assert release["manifest"]["features"]["outputs"]["categorical"][0]["vocabulary"] == [
        *("a", "b", "c")
    ]
    listed = client.get("/v1/models/detector/releases").json()["releases"]
    assert [(item["version"], item["manifest"]) for item in listed] == [("1.0.0", None)]
    (listed,) = client.get("/v1/models").json()["models"]
    assert (listed["model"], listed["releases"], listed["newest_staged"]) == (
        *("detector", 1, "1.0.0"),
    )


def test_version_pushed_twice(bench: Any, client: Any, push: Any) -> None:
    assert push().status_code == 202
    _refused(push(), 409, "version_exists")
    bench.settled()
    digest = client.get("/v1/models/detector/releases/1.0.0").json()["digest"]
    _refused(push(), 409, "version_exists")
    assert client.get("/v1/models/detector/releases/1.0.0").json()["digest"] == digest
    assert list((bench.folder / "incoming").iterdir()) == []


def test_refused_version_may_be_pushed_again(bench: Any, client: Any, push: Any) -> None:
    assert push(model=b"broken").status_code == 202
    found = bench.settled()
    release = client.get("/v1/models/detector/releases/1.0.0").json()
    assert (release["state"], release["problem"]["code"]) == ("refused", "not_onnx")
    assert bench.stored() == []
    assert push().status_code == 202
    assert bench.settled().state == "staged"
    assert bench.record().correlation_id != found.correlation_id


def test_other_calls_are_answered_while_a_release_is_staged(
    bench: Any, client: Any, push: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    quantise = pipeline.STEPS["quantisation"]

    def slow(arg: Any) -> Any:
        arg.job.on_try("3 of 6: dynamic int8")
        reached.set()
        assert go_on.wait(WAIT_S)
        return quantise(arg)

    monkeypatch.setitem(pipeline.STEPS, "quantisation", slow)
    push()
    assert reached.wait(WAIT_S)
    release = client.get("/v1/models/detector/releases/1.0.0").json()
    assert release["state"] == "staging"
    assert [step["name"] for step in release["steps"]] == ["examination", "data"]
    assert release["steps_to_do"] == [
        *("quantisation", "parity", "variants", "features", "gates", "sealing")
    ]
    assert release["doing"] == "3 of 6: dynamic int8"
    go_on.set()
    assert bench.settled().state == "staged"
    assert client.get("/v1/models/detector/releases/1.0.0").json()["doing"] is None


def test_nobody_known(bench: Any, client: Any, push: Any) -> None:
    anonymous = client.anonymous()
    for method, path in (
        ("POST", "/v1/models/detector/releases"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/detector/releases"),
        ("GET", "/v1/models/detector/releases/1.0.0"),
        ("GET", f"/v1/store/{artifact_path('detector', '0' * 64)}"),
    ):
        assert anonymous.request(method, path).status_code == 401
    _nothing_left(bench, client)


def _bomb() -> bytes:
    buffer = io.BytesIO()
    block = bytes(1 << 24)
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("features.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(70):
            member.write(block)
    return buffer.getvalue()


def _pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, features=np.array([{"a": 1}], dtype=object))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"golden": b"no archive"}, "not_npz"),
        ({"calibration": _pickled()}, "pickled"),
        ({"version": "latest"}, "invalid_name"),
        ({"version": "1.0"}, "invalid_name"),
        ({"version": "../1.0.0"}, "invalid_name"),
        ({"name": "Detector"}, "invalid_name"),
        ({"output_kind": "boxes"}, "bad_field"),
        ({"agreement": "1.5"}, "bad_field"),
        ({"agreement": "nan"}, "bad_field"),
        ({"agreement": "much"}, "bad_field"),
        ({"metadata": "{"}, "bad_field"),
        ({"metadata": "[" * 10_000}, "bad_field"),
        ({"metadata": '{"unknown": 1}'}, "bad_field"),
        ({"metadata": '{"classes": "abc"}'}, "bad_field"),
        ({"metadata": '{"classes": ["cat\\u001b[2J"]}'}, "bad_field"),
        ({"metadata": '{"classes": [""]}'}, "bad_field"),
        ({"metadata": '{"notes": {"../by": "Ann"}}'}, "bad_field"),
        ({"metadata": '{"sources": {"": "s3://a/b"}}'}, "bad_field"),
        ({"surprise": "x"}, "bad_field"),
        ({"surprise": b"x"}, "bad_field"),
        ({"model": b""}, "missing_file"),
    ],
)
def test_push_that_cannot_be_taken(
    bench: Any, client: Any, push: Any, given: dict, code: str
) -> None:
    _refused(push(**given), 422, code)
    _nothing_left(bench, client)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "field", "form"),
    [
        ({"agreement": "1.5"}, "'agreement'", "a share from 0.5 to 1"),
        ({"agreement": "much"}, "'agreement'", "a share from 0.5 to 1"),
        ({"metric": "foo"}, "'metric'", "accuracy"),
        ({"metadata": '{"licence": "my own"}'}, "'licence' of metadata", "SPDX"),
        ({"metadata": '{"git_commit": "HEAD"}'}, "'git_commit' of metadata", "git rev-parse"),
        ({"metadata": '{"sources": {"": "s3://a"}}'}, "'sources' of metadata", "by name"),
        ({"metadata": '{"unknown": 1}'}, "unknown field `unknown`", "JSON"),
        ({"overrides": '{"latency": "x"}'}, "'overrides'", "3 to 500 characters"),
        ({"variants": '[{"name": "pi4", "recipe": "foo"}]'}, "'recipe' of variants", "float16"),
    ],
)
def test_field_of_another_form_is_named_with_its_own(
    bench: Any, client: Any, push: Any, given: dict[str, Any], field: str, form: str
) -> None:
    problem = push(**given).json()
    assert field in problem["detail"] and form in problem["advice"], problem
    assert "regex" not in problem["detail"]


def test_zip_bomb(bench: Any, client: Any, push: Any) -> None:
    bomb = _bomb()
    assert len(bomb) < 2 * 1024**2
    _refused(push(baseline=bomb), 422, "arrays_too_large")
    _nothing_left(bench, client)


def test_upload_above_the_limit(bench: Any, client: Any, push: Any) -> None:
    _refused(push(baseline=bytes(5 * 1024**2)), 413, "too_large")
    _refused(push(metadata=json.dumps({"notes": {"a": "x" * 70_000}})), 413, "field_too_large")
    _nothing_left(bench, client)


BOUNDARY = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (b"{}", {"Content-Type": "application/json"}, "not_multipart"),
        (b"", {"Content-Type": "multipart/form-data"}, "not_multipart"),
        (b"", BOUNDARY, "bad_multipart"),
        (b"nonsense", BOUNDARY, "bad_multipart"),
        (
            b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nabc',
            BOUNDARY,
            "bad_multipart",
        ),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n", BOUNDARY, "bad_field"),
        (b"--x--\r\n", BOUNDARY, "missing_version"),
        (
            b'--x\r\nContent-Disposition: form-data; name="version"\r\n\r\n\xff\xfe\r\n--x--\r\n',
            BOUNDARY,
            "bad_field",
        ),
        (b"--x\r\n" + b"A: b\r\n" * 100 + b"\r\nabc\r\n--x--\r\n", BOUNDARY, "bad_multipart"),
    ],
)
def test_malformed_form(bench: Any, client: Any, body: bytes, headers: dict, code: str) -> None:
    response = client.post("/v1/models/detector/releases", content=body, headers=headers)
    _refused(response, 422, code)
    _nothing_left(bench, client)


def test_field_that_comes_twice(bench: Any, client: Any, push: Any) -> None:
    files = [("version", (None, "1.0.0")), ("version", (None, "2.0.0"))]
    response = client.post("/v1/models/detector/releases", files=files)
    _refused(response, 422, "bad_field")
    _nothing_left(bench, client)


@pytest.fixture
def artifact(bench: Any, push: Any) -> tuple[str, bytes]:
    """The path below /v1/store and the bytes of a staged artifact."""
    push()
    manifest = bench.settled().manifest
    path = artifact_path("detector", manifest.variants[0].artifact.digest)
    return path, (bench.folder / "store" / path).read_bytes()


def test_download(client: Any, artifact: tuple[str, bytes]) -> None:
    path, data = artifact
    response = client.get(f"/v1/store/{path}")
    assert (response.status_code, response.content) == (200, data)
    assert response.headers["etag"] == f'"{path.rpartition("/")[2]}"'
    assert "immutable" in response.headers["cache-control"]
    again = client.get(f"/v1/store/{path}", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("tags", "status"),
    [
        ('"{}"', 304),
        ('W/"{}"', 304),
        ('"other", "{}"', 304),
        ("*", 304),
        ('"other"', 200),
        ("{}", 200),
        ("", 200),
    ],
)
def test_download_of_what_is_there_already(
    client: Any, artifact: tuple[str, bytes], tags: str, status: int
) -> None:
    path, _ = artifact
    headers = {"If-None-Match": tags.format(path.rpartition("/")[2])}
    for method in ("GET", "HEAD"):
        response = client.request(method, f"/v1/store/{path}", headers=client.headers | headers)
        assert response.status_code == status, (method, tags)
        assert response.headers["etag"] == f'"{path.rpartition("/")[2]}"'


def test_question_how_large_a_file_is(client: Any, artifact: tuple[str, bytes]) -> None:
    path, data = artifact
    ranged = client.headers | {"Range": "bytes=0-3"}
    for headers in (client.headers, ranged):
        response = client.request("HEAD", f"/v1/store/{path}", headers=headers)
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-length"] == str(len(data))
        assert "immutable" in response.headers["cache-control"]
    gone = client.request("HEAD", f"/v1/store/{artifact_path('detector', '0' * 64)}")
    assert gone.status_code == 404


@pytest.mark.parametrize("tag", ['"{}"', 'W/"{}"', "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_range_only_of_the_very_same_file(
    client: Any, artifact: tuple[str, bytes], tag: str
) -> None:
    path, data = artifact
    digest = path.rpartition("/")[2]
    headers = {"Range": "bytes=5-", "If-Range": tag.format(digest)}
    response = client.get(f"/v1/store/{path}", headers=headers)
    same = tag.startswith('"')
    assert (response.status_code, response.content) == ((206, data[5:]) if same else (200, data))


@pytest.mark.parametrize(
    ("wanted", "first", "last"), [("0-9", 0, 10), ("10-", 10, None), ("-5", -5, None)]
)
def test_download_that_goes_on(
    client: Any, artifact: tuple[str, bytes], wanted: str, first: int, last: int | None
) -> None:
    path, data = artifact
    response = client.get(f"/v1/store/{path}", headers={"Range": f"bytes={wanted}"})
    assert (response.status_code, response.content) == (206, data[first:last])
    start = first % len(data)
    end = start + len(response.content) - 1
    assert response.headers["content-range"] == f"bytes {start}-{end}/{len(data)}"


def test_download_beyond_the_end(client: Any, artifact: tuple[str, bytes]) -> None:
    path, data = artifact
    response = client.get(f"/v1/store/{path}", headers={"Range": f"bytes={len(data)}-"})
    assert response.status_code == 416
    assert response.headers["content-range"] == f"bytes */{len(data)}"


@pytest.mark.parametrize("wanted", ["bytes=0-1,4-5", "bytes=x", "lines=0-1", "bytes=-", "bytes"])
def test_range_that_is_not_understood_is_ignored(
    client: Any, artifact: tuple[str, bytes], wanted: str
) -> None:
    path, data = artifact
    response = client.get(f"/v1/store/{path}", headers={"Range": wanted})
    assert (response.status_code, response.content) == (200, data)


def test_changed_file_is_not_mixed_with_the_rest_of_another(
    client: Any, artifact: tuple[str, bytes]
) -> None:
    path, data = artifact
    headers = {"Range": "bytes=5-", "If-Range": f'"{"0" * 64}"'}
    response = client.get(f"/v1/store/{path}", headers=headers)
    assert (response.status_code, response.content) == (200, data)


@pytest.mark.parametrize(
    "path",
    [
        "../fleet.sqlite",
        "..%2f..%2ffleet.sqlite",
        "artifacts/..%2f..%2fadmin-token",
        "artifacts/%2e%2e/%2e%2e/admin-token",
        "manifests/..%2f..%2fadmin-token%00.json",
        "fresh/",
        "%2fetc%2fpasswd",
    ],
)
def test_traversal(bench: Any, client: Any, path: str) -> None:
    response = client.get(f"/v1/store/{path}")
    assert response.status_code in {404, 422}
    assert response.headers["content-type"] == "application/problem+json"


def test_file_that_is_not_there(client: Any) -> None:
    _refused(client.get(f"/v1/store/{artifact_path('detector', '0' * 64)}"), 404, "no_such_file")
    _refused(client.get("/v1/models/nothing/releases"), 404, "no_such_model")
    _refused(client.get("/v1/models/nothing/releases/1.0.0"), 404, "no_such_release")
