"""No name that came over the wire becomes a path: not of a model, a device, a role or a target.

The attacker writes names with separators, dots, quotes in percent and NULs wherever a name is
taken, and wants a file outside the folder that is meant: to be read by the server, or to be written
by the device.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from device_agent.errors import StepFailed
from device_agent.shell.catalogue import FOLDER
from device_agent.shell.metadata_files import MetadataFiles
from device_agent.shell.workshop import Workshop
from fleet_contract import codec, topics
from fleet_contract.errors import InvalidName, Reason, Refused
from fleet_contract.manifest import FileRef, Manifest, manifest_path
from fleet_contract.names import check_identity, check_model, check_version
from fleet_contract.trust.directive import ReleaseRef
from tests.attacks.battlefield import Battlefield
from tests.attacks.core_scene import TOPICS, CoreScene
from tests.attacks.siege import Siege
from tests.device_agent.core.toy_device import MODEL as CORE_MODEL
from tests.device_agent.shell.toy_fleet import MODEL

EVIL = [
    "..",
    ".",
    "../evil",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\x00b",
    "~root",
    "%2e%2e",
    "%2e%2e%2fevil",
    "..%2f",
    "a b",
    "a\n",
    "",
    "A",
    "é",
    "a" * 300,
]


@pytest.mark.parametrize("name", EVIL)
def test_name_that_is_a_path(name: str) -> None:
    for check in (check_model, check_version, lambda text: check_identity(text, "device")):
        with pytest.raises(InvalidName):
            check(name)
    for topic in (f"fleet/v1/home/cohort/lab/{name}", f"fleet/v1/home/cohort/{name}/digits"):
        with pytest.raises(InvalidName):
            topics.read_directive(topic)
    with pytest.raises(InvalidName):
        topics.read_device(f"fleet/v1/home/device/{name}/progress")


@pytest.mark.parametrize("name", EVIL)
def test_signed_directive_with_a_path_for_a_name(name: str) -> None:
    """Even the director cannot make a device build a path of it: a release is found by its hash."""
    scene = CoreScene()
    before = scene.device.state.record
    for also in ({"model": name}, {"cohort": name}, {"fleet": name}):
        scene.receive("directive", scene.directive(also=also))
    for digest in (name, f"../{'b' * 61}"):
        ref = {"manifest": "m", "digest": digest}
        scene.receive("directive", scene.directive(also={"default": ref, "arms": []}))
    assert set(scene.device.refusals()) == {Reason.MALFORMED}
    scene.unmoved(before)
    assert TOPICS["directive"].endswith(CORE_MODEL)
    scene.obeys()


@pytest.mark.parametrize("name", EVIL)
def test_manifest_path_of_a_directive_is_not_used(siege: Siege, name: str) -> None:
    """What is fetched follows from the model and the hash; the path beside it is for people."""
    release = siege.fleet.release("2.0.0", opset=14)
    before = len(siege.fleet.requests)
    siege.fetch(ReleaseRef(name[:300], release.digest))
    asked = [path for path, _ in siege.fleet.requests[before:]]
    assert manifest_path(MODEL, release.digest) in asked
    assert not any(name in path for path in asked if name not in ("", ".", "A"))


@pytest.mark.parametrize("name", EVIL)
def test_manifest_that_names_a_path(siege: Siege, name: str) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    manifest = codec.decode_json(siege.fleet.files[release.manifest], Manifest, limit_bytes=1 << 20)
    real = manifest.variants[0].artifact.digest
    data = codec.encode_json(manifest).replace(codec.encode_json(real), codec.encode_json(name), 1)
    file = siege.fleet.put_file(data)
    path = manifest_path(MODEL, file.digest)
    siege.fleet.files[path] = data
    siege.fleet.catalogue.publish(MODEL, file, [])
    siege.refused(ReleaseRef(path, file.digest), Reason.MALFORMED)
    siege.fetch(release)


@pytest.mark.parametrize("digest", ["../record", "..", "a" * 63, "A" * 64, f"{'a' * 64}\n"])
def test_store_of_the_device_takes_digests_only(siege: Siege, digest: str) -> None:
    for ask in (siege.store.artifact, siege.store.partial, siege.store.load_manifest):
        with pytest.raises(StepFailed) as caught:
            ask(digest)
        assert caught.value.reason is Reason.MALFORMED
    with pytest.raises(StepFailed):
        siege.store.save_manifest(digest, b"{}")


@pytest.mark.parametrize("role", [name for name in EVIL if "\x00" not in name and len(name) < 80])
def test_role_that_is_a_path(siege: Siege, role: str) -> None:
    files = MetadataFiles(siege.store.folder / FOLDER)
    around = set(siege.store.folder.parent.rglob("*"))
    files.save(role, b"{}")
    assert files.load(role) == b"{}"
    new = set(siege.store.folder.parent.rglob("*")) - around
    assert {path.parent for path in new} == {siege.store.folder / FOLDER}


def test_target_that_is_a_path_is_never_published(siege: Siege) -> None:
    for name in EVIL:
        with pytest.raises((InvalidName, Refused, ValueError)):
            codec.decode_json(
                codec.encode_json({"digest": name, "size_bytes": 1}), FileRef, limit_bytes=1000
            )


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, workshop: Workshop) -> Iterator[Battlefield]:
    """A server without devices."""
    found = Battlefield(tmp_path_factory.mktemp("quiet"), workshop)
    found.start_server()
    yield found
    found.stop_server()


PLACES = ["/v1/store/", "/v1/trust/metadata/", "/v1/trust/targets/", "/v1/trust/roots/"]
CLIMBS = [
    "../../../../../../../../etc/passwd",
    "%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "%252e%252e%252fetc%252fpasswd",
    "artifacts/digits/../../../admin-token",
    "artifacts/digits/%2e%2e/%2e%2e/%2e%2e/admin-token",
    "artifacts%2fdigits%2f..%2f..%2f..%2fadmin-token",
    "../admin-token",
    "../keys/director.key",
    "..%2fkeys%2fdirector.key",
    "%00",
    "1.root.json%00",
    "..%5c..%5cadmin-token",
    "//etc/passwd",
    "file:///etc/passwd",
]


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_server_reads_nothing_outside_its_folders(quiet: Battlefield, place: str) -> None:
    """Sent as it stands: an HTTP client would tidy the path up before the server sees it."""
    parts = urlsplit(str(quiet.http.base_url))
    data: Path = quiet.app.state.settings.data_dir
    secrets = [(data / "admin-token").read_text().strip(), "root:"]
    authorization = quiet.http.headers["Authorization"]
    for climb in CLIMBS:
        with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
            connection.sendall(
                f"GET {place}{climb} HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            body = answer.read().decode("utf-8", "replace")
        assert 400 <= answer.status < 500, f"{place}{climb}: {answer.status}"
        assert not any(secret in body for secret in secrets)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EVIL if name.isascii() and name])
def test_upload_under_a_name_that_is_a_path(quiet: Battlefield, name: str) -> None:
    data: Path = quiet.app.state.settings.data_dir
    before = {path for path in data.parent.rglob("*") if path.suffix in (".onnx", ".npz")}
    files = dict.fromkeys(("model", "calibration", "golden"), (name, b"x"))
    answer = quiet.http.post("/v1/models/digits/releases", data={"version": name}, files=files)
    assert 400 <= answer.status_code < 500
    after = {path for path in data.parent.rglob("*") if path.suffix in (".onnx", ".npz")}
    assert after == before
