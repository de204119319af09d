"""Guards from a statement that passes for another release's, or that nobody signed."""

import base64
import json
from typing import Any

import pytest

from fleet_contract.errors import Reason, Refused
from fleet_server.provenance import statement
from fleet_server.provenance.statement import Attester, Run
from fleet_server.trust.keyring import Keyring

INPUTS = {"model": "a" * 64, "calibration": "b" * 64}
OUTPUTS = {"artifacts/detector/x": "c" * 64, "manifests/detector/y.json": "d" * 64}


def _seal(keyring: Keyring, **changed: Any) -> bytes:
    given: dict[str, Any] = {
        "inputs": INPUTS,
        "outputs": OUTPUTS,
        "parameters": {"model": "detector", "version": "1.0.0"},
        "tools": {"onnx": "1.23"},
        "invocation": "c-1",
        "started_ms": 1_795_000_000_000,
        **changed,
    }
    return statement.seal(Run(**given), Attester(keyring.fleet, keyring.sign_checkpoint))


def test_statement_has_the_forms_that_other_tools_read(keyring: Keyring) -> None:
    sealed = json.loads(_seal(keyring))
    assert sealed["payloadType"] == "application/vnd.in-toto+json"
    stated = json.loads(base64.b64decode(sealed["payload"]))
    assert stated["_type"] == "https://in-toto.io/Statement/v1"
    assert stated["predicateType"] == "https://slsa.dev/provenance/v1"
    assert {item["name"]: item["digest"]["sha256"] for item in stated["subject"]} == OUTPUTS
    build = stated["predicate"]["buildDefinition"]
    came_in = {item["name"]: item["digest"]["sha256"] for item in build["resolvedDependencies"]}
    assert came_in == INPUTS
    assert build["externalParameters"]["version"] == "1.0.0"
    run = stated["predicate"]["runDetails"]
    assert run["builder"]["version"] == {"onnx": "1.23"}
    assert run["metadata"] == {"invocationId": "c-1", "startedOn": "2026-11-18T11:06:40Z"}


def test_statement_by_a_stranger_is_refused(keyring: Keyring) -> None:
    with pytest.raises(Refused) as caught:
        statement.open_sealed(_seal(keyring), {"0" * 64: bytes(32)})
    assert caught.value.reason is Reason.UNKNOWN_KEY


def test_altered_statement_is_refused(keyring: Keyring) -> None:
    sealed = json.loads(_seal(keyring))
    payload = base64.b64decode(sealed["payload"]).replace(b"c" * 64, b"e" * 64)
    sealed["payload"] = base64.b64encode(payload).decode()
    with pytest.raises(Refused) as caught:
        statement.open_sealed(json.dumps(sealed).encode(), keyring.checkpoint_keys())
    assert caught.value.reason is Reason.BAD_SIGNATURE


def test_checkpoint_does_not_pass_for_a_statement(keyring: Keyring) -> None:
    payload = base64.b64decode(json.loads(_seal(keyring))["payload"])
    other = keyring.sign_checkpoint("application/json", payload)
    with pytest.raises(Refused):
        statement.open_sealed(other, keyring.checkpoint_keys())
    link = keyring.sign_checkpoint(
        statement.PAYLOAD_TYPE,
        payload.replace(b"slsa.dev/provenance/v1", b"slsa.dev/another/kinds"),
    )
    with pytest.raises(Refused, match="another kind"):
        statement.open_sealed(link, keyring.checkpoint_keys())


def test_swapped_digest_is_found_on_either_side(keyring: Keyring) -> None:
    stated = statement.open_sealed(_seal(keyring), keyring.checkpoint_keys())
    assert statement.differences(stated, INPUTS, OUTPUTS) == []
    swapped = {**INPUTS, "calibration": "f" * 64}
    assert "calibration" in statement.differences(stated, swapped, OUTPUTS)[0]
    for name in OUTPUTS:
        assert name in statement.differences(stated, INPUTS, {**OUTPUTS, name: "f" * 64})[0]
    fewer = dict(list(OUTPUTS.items())[:1])
    assert "no part of the release" in statement.differences(stated, INPUTS, fewer)[0]
