"""Guards from a policy that lets pass what nobody meant it to."""

import json
from pathlib import Path
from typing import Any

import pytest

from fleet_server.errors import Invalid, StartError
from fleet_server.provenance.policy import load_policy


def test_model_without_a_signature_is_refused_where_one_is_required(
    write_policy: Any, model_digest: str
) -> None:
    with pytest.raises(Invalid) as caught:
        write_policy().examine("detector", model_digest, b"", now_ms=1)
    assert caught.value.code == "signature_required"
    # Another family, or a rule that only allows: recorded as unsigned.
    assert write_policy().examine("speech", model_digest, b"", now_ms=1) is None
    assert write_policy(required=False).examine("detector", model_digest, b"", now_ms=1) is None


def test_wrong_signature_is_refused_even_where_none_is_needed(
    write_policy: Any, bundles: Path, model_digest: str
) -> None:
    data = (bundles / "secp256r1.sig").read_bytes()
    with pytest.raises(Invalid) as caught:
        write_policy(required=False).examine("detector", "0" * 64, data, now_ms=1)
    assert caught.value.code == "other_model_signed"


def test_signature_that_nobody_can_judge_is_not_recorded(bundles: Path, model_digest: str) -> None:
    data = (bundles / "secp256r1.sig").read_bytes()
    with pytest.raises(Invalid) as caught:
        load_policy("").examine("detector", model_digest, data, now_ms=1)
    assert caught.value.code == "no_signers"


def test_signer_of_one_family_does_not_sign_for_another(
    write_policy: Any, bundles: Path, model_digest: str
) -> None:
    data = (bundles / "secp384r1.sig").read_bytes()
    with pytest.raises(Invalid) as caught:
        write_policy(keys={"team vision": "secp256r1.pem"}).examine(
            "detector", model_digest, data, now_ms=1
        )
    assert caught.value.code == "signer_not_allowed"


@pytest.mark.parametrize(
    "changed",
    [
        {"models": "Detector"},
        {"models": "de*tor"},
        {"requierd": True},
        {"required": "yes"},
        {"keys": {"me": "no-such-file.pem"}},
        {"keys": {"me": "../secp256r1.pem"}},
        {"keys": {"me": "/etc/hostname"}},
        {"keys": {"me": "~/key.pem"}},
        {"keys": {"me": "policy.json"}},
        {"keys": {}, "certificates": []},
        {"certificates": [{"ca": "authority.pem", "identities": ["*"]}]},
        {"certificates": [{"ca": "authority.pem", "identities": ["*@*"]}]},
        {"certificates": [{"ca": "authority.pem", "identities": []}]},
        {"certificates": [{"ca": "secp256r1.pem", "identities": ["ann@example.org"]}]},
    ],
)
def test_policy_that_is_half_there_stops_the_start(
    write_policy: Any, changed: dict[str, Any]
) -> None:
    with pytest.raises(StartError) as caught:
        write_policy(**changed)
    assert caught.value.code == "bad_provenance_policy"


def test_policy_that_is_no_policy_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    for text in ("", "{}", "[]", json.dumps({"families": [{}]}), " " * 300_000):
        path.write_text(text)
        with pytest.raises(StartError):
            load_policy(str(path))
    with pytest.raises(StartError):
        load_policy(str(tmp_path / "nothing.json"))
