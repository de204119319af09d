"""Whoever stands between device and store can withhold a file, but never pass off another one."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_contract import limits
from fleet_contract.errors import Reason
from fleet_contract.manifest import FileRef, artifact_path, manifest_path
from fleet_contract.trust.directive import ReleaseRef
from tests.attacks.siege import Siege, signed
from tests.device_agent.shell.toy_fleet import MODEL


def test_artifact_of_the_same_length(siege: Siege) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    path = siege.fleet.artifact_of(14)
    real = siege.fleet.files[path]
    siege.fleet.files[path] = real[:-1] + bytes([real[-1] ^ 1])
    siege_refused(siege, release, Reason.WRONG_HASH)
    assert not siege.store.partial(path.rpartition("/")[2]).exists(), "thrown away, not resumed"
    siege.fleet.files[path] = real
    siege.fetch(release)


def test_manifest_of_the_same_length(siege: Siege) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    real = siege.fleet.files[release.manifest]
    siege.fleet.files[release.manifest] = real.replace(b"2.0.0", b"6.6.6")
    siege.refused(release, Reason.WRONG_HASH)
    siege.fleet.files[release.manifest] = real
    siege.fetch(release)


def test_manifest_that_is_shorter(siege: Siege) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    real = siege.fleet.files[release.manifest]
    siege.fleet.files[release.manifest] = real[:-2]
    siege.refused(release, Reason.WRONG_SIZE)
    siege.fleet.files[release.manifest] = real
    siege.fetch(release)


@pytest.mark.parametrize("announced", [True, False])
def test_artifact_without_end(siege: Siege, announced: bool) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    path = siege.fleet.artifact_of(14)
    sent = 0

    def endless(handler: Any) -> bool:
        nonlocal sent
        handler.send_response(200)
        if announced:
            handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        try:
            while sent < 64 * 1024 * 1024:
                handler.wfile.write(bytes(65_536))
                sent += 65_536
        except OSError:
            pass
        return True

    siege.fleet.misbehave[path] = endless
    siege_refused(siege, release, Reason.WRONG_SIZE)
    assert sent < 32 * 1024 * 1024
    siege.give_up()
    siege.fetch(release)


def test_artifact_that_is_said_to_be_longer(siege: Siege) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    path = siege.fleet.artifact_of(14)
    real = siege.fleet.files[path]

    def boast(handler: Any) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(real) + 1))
        handler.end_headers()
        handler.wfile.write(real)
        return True

    siege.fleet.misbehave[path] = boast
    siege_refused(siege, release, Reason.WRONG_SIZE)
    siege.give_up()
    siege.fetch(release)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "x-bomb"])
def test_answer_that_unpacks_to_more_than_it_is(siege: Siege, coding: str) -> None:
    """The device asks for bytes as they are and unpacks nothing that it was not asked to."""
    release = siege.fleet.release("2.0.0", opset=14)

    def packed(handler: Any) -> bool:
        handler.answer(200, b"\x1f\x8b a bomb", {"Content-Encoding": coding})
        return True

    for path in (release.manifest, siege.fleet.artifact_of(14)):
        siege.fleet.misbehave[path] = packed
        siege_refused(siege, release, Reason.DOWNLOAD_FAILED)
        siege.give_up()
    siege.show("timestamp.json", packed)
    siege_refused(siege, release, Reason.DOWNLOAD_FAILED)
    siege.give_up()
    siege.fetch(release)


def test_redirect_to_somewhere_else(siege: Siege) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    path = siege.fleet.artifact_of(14)

    def elsewhere(handler: Any) -> bool:
        handler.answer(302, b"", {"Location": f"{siege.fleet.url}/v1/store/elsewhere"})
        return True

    siege.fleet.misbehave[path] = elsewhere
    siege_refused(siege, release, Reason.DOWNLOAD_FAILED)
    assert "elsewhere" not in [asked for asked, _ in siege.fleet.requests]
    siege.give_up()
    siege.fetch(release)


def test_manifest_and_metadata_disagree_about_a_size(siege: Siege) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    digest = siege.fleet.artifact_of(14).rpartition("/")[2]
    siege.fleet.catalogue.publish(MODEL, FileRef(digest, 7), [])  # under another path
    role = siege.bin_of(artifact_path(MODEL, digest))
    shown, metadata = siege.present(role)
    metadata.signed.targets[artifact_path(MODEL, digest)].length += 1
    siege.show(shown, signed(metadata, siege.key_of(f"model.{MODEL}")))
    forget_bins(siege)
    siege.refused(release, Reason.WRONG_SIZE)
    siege.give_up()
    forget_bins(siege)
    siege.fetch(release)


def test_manifest_and_metadata_disagree_about_a_hash(siege: Siege) -> None:
    """Else the store would keep one file under the name of another."""
    release = siege.fleet.release("2.0.0", opset=14)
    path = siege.fleet.artifact_of(14)
    other = siege.fleet.put_file(bytes(len(siege.fleet.files[path])))
    role = siege.bin_of(path)
    shown, metadata = siege.present(role)
    metadata.signed.targets[path].hashes = {"sha256": other.digest}
    siege.show(shown, signed(metadata, siege.key_of(f"model.{MODEL}")))
    folder = path.rpartition("/")[0]
    name = f"{other.digest}.{path.rpartition('/')[2]}"
    siege.fleet.files[f"{folder}/{name}"] = bytes(other.size_bytes)
    forget_bins(siege)
    siege.refused(release, Reason.WRONG_HASH)
    siege.give_up()
    forget_bins(siege)
    siege.fetch(release)


def test_manifest_of_another_model(siege: Siege) -> None:
    """Vouched for by this model's own team, under this model's path: it is still another's."""
    release = siege.fleet.release("2.0.0", opset=14)
    real = siege.fleet.files[release.manifest]
    data = real.replace(b'"model":"digits"', b'"model":"faces"')
    assert data != real
    file = siege.fleet.put_file(data)
    path = manifest_path(MODEL, file.digest)
    siege.fleet.files[path] = data
    siege.fleet.catalogue.publish(MODEL, file, [])
    siege.refused(ReleaseRef(path, file.digest), Reason.WRONG_AUDIENCE)
    siege.fetch(release)


def test_manifest_beyond_all_bounds(siege: Siege) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    huge = FileRef("ab" * 32, limits.MANIFEST_BYTES + 1)
    siege.fleet.catalogue.publish(MODEL, huge, [])
    wrong = type(release)(f"manifests/{MODEL}/{huge.digest}.json", huge.digest)
    siege.refused(wrong, Reason.TOO_LARGE)
    assert not any(huge.digest in path for path, _ in siege.fleet.requests), "not even asked for"
    siege.fetch(release)


def forget_bins(siege: Siege) -> None:
    for path in (siege.store.folder / "metadata").glob("bin.*"):
        path.unlink()


def siege_refused(siege: Siege, release: Any, reason: Reason) -> None:
    """As ``Siege.refused``, but the manifest and the golden vectors may have come in already."""
    artifact = siege.store.artifact(siege.fleet.artifact_of(14).rpartition("/")[2])
    with pytest.raises(Exception, match=reason.value):
        siege.fetch(release)
    assert not artifact.exists()
