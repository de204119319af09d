"""The statement of what staging made out of what: in-toto, with SLSA's provenance as predicate.

Decides what the statement says, how it is sealed, and whether one that is read belongs to a
release. Quantising changes a model's bytes, so no signature of the float model holds for what
devices run; this is the link between the two. Where it is kept is the releases' matter.
Forms: in-toto Statement v1 (https://github.com/in-toto/attestation/tree/main/spec/v1) and
https://slsa.dev/spec/v1.0/provenance.
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract import codec
from fleet_contract.errors import Reason, Refused
from fleet_contract.names import Digest
from fleet_contract.trust import envelope

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:edgefleet:stage-int8:v1"

ENVELOPE_BYTES = 64 * 1024
"""A sealed statement; one takes about 3 KiB, and a text in it has at most 500 characters."""

DEPENDENCIES = ("model", "calibration", "golden", "baseline")
"""What goes into staging; the names that its digests have in the statement."""


class DigestSet(msgspec.Struct, frozen=True):
    """The digests of one file; SHA-256 is the only one that is looked at."""

    sha256: Digest


class Resource(msgspec.Struct, frozen=True):
    """A file that went in or came out."""

    name: str
    digest: DigestSet


class BuildDefinition(msgspec.Struct, frozen=True, rename="camel"):
    """What was asked for, and of what it was made."""

    build_type: str
    external_parameters: dict[str, str | float]
    resolved_dependencies: Annotated[list[Resource], Meta(max_length=16)]


class Builder(msgspec.Struct, frozen=True):
    """Who made it; ``version`` has the tools' versions."""

    id: str
    version: dict[str, str]


class Invocation(msgspec.Struct, frozen=True, rename="camel"):
    """Which run it was: its correlation id, and when it was asked for."""

    invocation_id: str
    started_on: str


class RunDetails(msgspec.Struct, frozen=True):
    """How it was made."""

    builder: Builder
    metadata: Invocation


class Provenance(msgspec.Struct, frozen=True, rename="camel"):
    """SLSA's predicate."""

    build_definition: BuildDefinition
    run_details: RunDetails


class Statement(msgspec.Struct, frozen=True, rename="camel"):
    """What came out (``subject``), and what is said about it."""

    type: str = msgspec.field(name="_type")
    subject: Annotated[list[Resource], Meta(max_length=16)]
    predicate_type: str
    predicate: Provenance


@dataclass(frozen=True, slots=True)
class Attester:
    """Who vouches for what was made: the fleet's server, by the key that signs its directives."""

    fleet: str
    sign: Callable[[str, bytes], bytes]
    """Payload type and payload to the envelope."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of staging. ``inputs`` and ``outputs`` map names to SHA-256 digests."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    parameters: Mapping[str, str | float]
    tools: Mapping[str, str]
    invocation: str
    started_ms: int


def seal(run: Run, attester: Attester) -> bytes:
    """Return the sealed statement; the same run gives the same bytes."""
    moment = datetime.fromtimestamp(run.started_ms // 1_000, UTC)
    stated = Statement(
        type=STATEMENT_TYPE,
        subject=_resources(run.outputs),
        predicate_type=PREDICATE_TYPE,
        predicate=Provenance(
            BuildDefinition(BUILD_TYPE, dict(run.parameters), _resources(run.inputs)),
            RunDetails(
                Builder(f"urn:edgefleet:fleet:{attester.fleet}", dict(run.tools)),
                Invocation(run.invocation, moment.isoformat().replace("+00:00", "Z")),
            ),
        ),
    )
    return attester.sign(PAYLOAD_TYPE, codec.encode_json(stated))


def open_sealed(data: bytes, keys: Mapping[str, bytes]) -> Statement:
    """Return the statement in an envelope that one of the keys signed.

    Raises:
        Refused: ``unknown_key`` if none of them did, else why it is no such statement.
    """
    return _parse(envelope.unseal(data, PAYLOAD_TYPE, keys, limit_bytes=ENVELOPE_BYTES))


def _parse(payload: bytes) -> Statement:
    stated = codec.decode_json(payload, Statement, limit_bytes=ENVELOPE_BYTES)
    if (stated.type, stated.predicate_type) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise Refused(Reason.MALFORMED, "it is a statement of another kind")
    return stated


def read_unproven(data: bytes) -> Statement:
    """Return the statement in an envelope, whoever signed it: for one whose digest is known.

    Raises:
        Refused: if it is no such statement.
    """
    sealed = codec.decode_json(data, envelope.Envelope, limit_bytes=ENVELOPE_BYTES)
    try:
        payload = base64.b64decode(sealed.payload, validate=True)
    except ValueError as error:
        raise Refused(Reason.MALFORMED, "the payload is not base64") from error
    return _parse(payload)


def differences(
    stated: Statement, inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> list[str]:
    """Return what the statement says otherwise than the release, in sentences; best, nothing.

    Args:
        stated: the statement.
        inputs: name → SHA-256 of what went in, as far as it is known elsewhere.
        outputs: name → SHA-256 of all that came out.
    """
    came_out = {item.name: item.digest.sha256 for item in stated.subject}
    went_in = {
        item.name: item.digest.sha256
        for item in stated.predicate.build_definition.resolved_dependencies
    }
    found = [
        f"the {name} went in as {went_in.get(name, 'nothing')[:12]}, and is {digest[:12]} here"
        for name, digest in sorted(inputs.items())
        if went_in.get(name) != digest
    ]
    found += [
        f"{name} came out as {came_out.get(name, 'nothing')[:12]}, and is {digest[:12]} here"
        for name, digest in sorted(outputs.items())
        if came_out.get(name) != digest
    ]
    found += [
        f"{name} came out, and is no part of the release"
        for name in sorted(came_out.keys() - outputs.keys())
    ]
    return found


def _resources(files: Mapping[str, str]) -> list[Resource]:
    return [Resource(name, DigestSet(digest)) for name, digest in files.items()]
