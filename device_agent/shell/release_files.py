"""The files of a release on this device: how they get here, and how they are opened again.

Decides the order of the checks: manifest by hash, then by signature, then whether a variant fits
the device, and only then the large files. A release that was admitted once is opened by hash alone:
the keys that signed it may have been rotated since, and going back must not need them.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from device_agent.errors import StepFailed
from device_agent.inference.artifact_file import read_verified
from device_agent.shell.download import download
from device_agent.shell.http_source import HttpSource
from device_agent.shell.store import Store
from fleet_contract import WIRE_VERSION, codec, limits
from fleet_contract.errors import Reason, Refused
from fleet_contract.manifest import (
    Capabilities,
    Manifest,
    Variant,
    choose_variant,
    manifest_path,
    read_manifest,
)
from fleet_contract.trust.directive import ReleaseRef
from fleet_contract.trust.envelope import Envelope


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
    model: str,
    release: ReleaseRef,
    *,
    release_keys: Mapping[str, bytes],
    device: Device,
    canceled: Callable[[], bool],
) -> ReleaseFiles:
    """Bring manifest, artifact and golden vectors of a release into the store, and verify them.

    Raises:
        StepFailed: with the reason why not. Canceled: if nobody wants it any more.
    """
    data = store.load_manifest(release.digest)
    if data is None:
        # The path is made from checked names, never taken from the directive.
        path = manifest_path(model, release.digest)
        data = source.get(path, limit_bytes=limits.MANIFEST_BYTES, canceled=canceled)
        if hashlib.sha256(data).hexdigest() != release.digest:
            raise StepFailed(Reason.WRONG_HASH, "the manifest is not the one in the directive")
    try:
        manifest = read_manifest(data, release_keys=release_keys, model=model)
    except Refused as refused:
        raise StepFailed(refused.reason, f"manifest: {refused.detail}") from refused
    files = _files(store, release.digest, manifest, device)
    store.save_manifest(release.digest, data)
    for file in (manifest.golden.file, files.variant.artifact):
        download(source, store, file, canceled)
    return files


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
        sealed = codec.decode_json(data, Envelope, limit_bytes=limits.MANIFEST_BYTES)
        payload = base64.b64decode(sealed.payload, validate=True)
        return codec.decode_json(payload, Manifest, limit_bytes=limits.MANIFEST_BYTES)
    except (Refused, binascii.Error, ValueError) as error:
        raise StepFailed(Reason.MALFORMED, f"manifest: {error}"[:300]) from error
