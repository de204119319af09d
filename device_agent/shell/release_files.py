"""The files of a release on this device: how they get here, and how they are opened again.

Decides the order of the checks: the manifest is one that fresh metadata knows under this model's
path, with the directive's hash; then a variant fits the device; then the metadata knows its files,
with the manifest's hashes and sizes; and only then are they fetched. A release that was admitted
once is opened by hash alone: going back needs neither metadata nor network.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from device_agent.errors import StepFailed
from device_agent.inference.artifact_file import read_verified
from device_agent.shell.catalogue import Catalogue, check
from device_agent.shell.download import Wanted, download
from device_agent.shell.http_source import HttpSource
from device_agent.shell.patching import download_by_patch
from device_agent.shell.store import Store
from fleet_contract import WIRE_VERSION, codec, limits
from fleet_contract.errors import Reason, Refused
from fleet_contract.manifest import (
    Capabilities,
    FileRef,
    Manifest,
    Variant,
    artifact_path,
    choose_variant,
    manifest_path,
    read_manifest,
)
from fleet_contract.trust.directive import ReleaseRef

if TYPE_CHECKING:
    from device_agent.shell.metadata_refresh import MetadataRefresh


@dataclass(frozen=True, slots=True)
class ReleaseFiles:
    """A release whose files are in the store."""

    digest: str
    manifest: Manifest
    variant: Variant
    artifact: Path
    golden: Path


@dataclass(frozen=True, slots=True)
class Device:
    """What decides which variant of a release fits."""

    capabilities: Capabilities
    labels: Mapping[str, str]


def fetch_release(
    source: HttpSource,
    store: Store,
    catalogue: Catalogue,
    model: str,
    release: ReleaseRef,
    *,
    device: Device,
    time_floor_ms: int,
    canceled: Callable[[], bool],
) -> ReleaseFiles:
    """Bring manifest, artifact and golden vectors of a release into the store, and verify them.

    Raises:
        StepFailed: with the reason why not. Canceled: if nobody wants it any more.
    """
    with catalogue.refreshed(time_floor_ms=time_floor_ms, canceled=canceled) as refresh:
        # The path is made from checked names, never taken from the directive.
        target = refresh.find(manifest_path(model, release.digest))
        if target.size_bytes > limits.MANIFEST_BYTES:
            raise StepFailed(Reason.TOO_LARGE, f"a manifest of {target.size_bytes} bytes")
        data = store.load_manifest(release.digest)
        if data is None:
            data = source.get(target.address, limit_bytes=target.size_bytes, canceled=canceled)
        check(data, target.size_bytes, target.hashes.get("sha256", ""), "the manifest")
        check(data, target.size_bytes, release.digest, "the manifest of the directive")
        try:
            manifest = read_manifest(data, model=model)
        except Refused as refused:
            raise StepFailed(refused.reason, f"manifest: {refused.detail}") from refused
        files = _files(store, release.digest, manifest, device)
        wanted = [
            _vouched(refresh, model, file)
            for file in (manifest.golden.file, files.variant.artifact)
        ]
    store.save_manifest(release.digest, data)
    golden, artifact = wanted
    download(source, store, golden, canceled)
    download_by_patch(source, store, artifact, artifacts_of(store, model), canceled)
    download(source, store, artifact, canceled)
    return files


def artifacts_of(store: Store, model: str) -> list[FileRef]:
    """Return the model's artifacts that are here, the newest release's first."""
    manifests = []
    for digest in store.manifests():
        with contextlib.suppress(Refused):
            manifests.append(read_manifest(store.load_manifest(digest) or b"", model=model))
    manifests.sort(key=lambda manifest: manifest.release_counter, reverse=True)
    return [
        variant.artifact
        for manifest in manifests
        for variant in manifest.variants
        if store.has(variant.artifact)
    ]


def _vouched(refresh: "MetadataRefresh", model: str, file: FileRef) -> Wanted:
    """Return a file as the metadata describes it, which must be as the manifest does."""
    target = refresh.find(artifact_path(model, file.digest))
    if target.size_bytes != file.size_bytes:
        raise StepFailed(Reason.WRONG_SIZE, f"{file.digest[:12]}: manifest and metadata differ")
    if target.hashes.get("sha256") != file.digest:
        raise StepFailed(Reason.WRONG_HASH, f"{file.digest[:12]}: manifest and metadata differ")
    return Wanted(file.digest, file.size_bytes, target.address, target.hashes)


def open_release(store: Store, model: str, digest: str, device: Device) -> ReleaseFiles:
    """Return a release that this device has admitted before, if its files are still here.

    Raises:
        StepFailed: with the reason why not.
    """
    data = store.load_manifest(digest)
    if data is None:
        raise StepFailed(Reason.WRONG_HASH, "its manifest is missing or damaged")
    manifest = _admitted_manifest(data)
    if manifest.model != model:
        raise StepFailed(Reason.WRONG_AUDIENCE, f"a manifest of {manifest.model}, not {model}")
    files = _files(store, digest, manifest, device)
    for file in (manifest.golden.file, files.variant.artifact):
        if not store.has(file):
            raise StepFailed(Reason.WRONG_SIZE, f"{file.digest[:12]} is missing or cut short")
    return files


def drop_damaged(store: Store, files: ReleaseFiles) -> None:
    """Remove those files of a release that are not what they should be, to be fetched anew."""
    for file in (files.manifest.golden.file, files.variant.artifact):
        path = store.artifact(file.digest)
        try:
            read_verified(path, file)
        except StepFailed:
            path.unlink(missing_ok=True)


def sweep(store: Store, needed: set[str]) -> list[str]:
    """Remove manifests that nobody needs, and every file that no remaining manifest names.

    Args:
        store: where.
        needed: digests of the manifests to keep.

    Returns:
        The names of what was removed.
    """
    names: set[str] = set()
    gone = []
    for digest in store.manifests():
        data = store.load_manifest(digest) if digest in needed else None
        try:
            if data is None:
                raise StepFailed(Reason.WRONG_HASH, "not needed, or damaged")
            names |= files_named(_admitted_manifest(data))
        except StepFailed:
            store.drop_manifest(digest)
            gone.append(digest)
    return gone + store.sweep(names)


def files_named(manifest: Manifest) -> set[str]:
    """Return the digests of the files that a device may hold of a release."""
    return {manifest.golden.file.digest} | {
        variant.artifact.digest for variant in manifest.variants
    }


def _files(store: Store, digest: str, manifest: Manifest, device: Device) -> ReleaseFiles:
    if manifest.least_agent > WIRE_VERSION:
        raise StepFailed(
            Reason.NO_VARIANT, f"it needs an agent of wire version {manifest.least_agent}"
        )
    variant = choose_variant(manifest, device.capabilities, device.labels)
    if variant is None:
        raise StepFailed(Reason.NO_VARIANT, "no variant of it fits this device")
    return ReleaseFiles(
        digest,
        manifest,
        variant,
        store.artifact(variant.artifact.digest),
        store.artifact(manifest.golden.file.digest),
    )


def _admitted_manifest(data: bytes) -> Manifest:
    """Return the manifest in bytes whose hash was checked against that of an admitted release."""
    try:
        return codec.decode_json(data, Manifest, limit_bytes=limits.MANIFEST_BYTES)
    except Refused as refused:
        raise StepFailed(Reason.MALFORMED, f"manifest: {refused.detail}"[:300]) from refused
