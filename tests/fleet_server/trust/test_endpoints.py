"""Guards from metadata that is not where devices look for it, or is cached although it changes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest


def test_device_finds_the_way_from_the_token_to_the_keyset(server: Any) -> None:
    get = server.anonymous.get
    digest = server.app.state.catalogue.root_digest
    root = get(f"/v1/trust/roots/{digest}")
    assert hashlib.sha256(root.content).hexdigest() == digest
    timestamp = get("/v1/trust/metadata/timestamp.json")
    assert timestamp.headers["cache-control"] == "no-cache"
    version = timestamp.json()["signed"]["meta"]["snapshot.json"]["version"]
    snapshot = get(f"/v1/trust/metadata/{version}.snapshot.json")
    assert "immutable" in snapshot.headers["cache-control"]
    version = snapshot.json()["signed"]["meta"]["targets.json"]["version"]
    targets = get(f"/v1/trust/metadata/{version}.targets.json").json()["signed"]["targets"]
    stated = targets["keyset.json"]
    keyset = get(f"/v1/trust/targets/{stated['hashes']['sha256']}.keyset.json")
    assert len(keyset.content) == stated["length"]
    assert json.loads(keyset.content)["fleet"] == "home"


@pytest.mark.parametrize(
    "path",
    [
        "metadata/2.root.json",
        "metadata/99.snapshot.json",
        "metadata/signers.json",
        "metadata/..%2Fkeys%2Froot.pem",
        "metadata/1.root.json%0a",
        "targets/keyset.json",
        "targets/..%2Fkeys%2Froot.pem",
        f"roots/{'0' * 64}",
        "roots/..",
        "keyset",
    ],
)
def test_path_that_leads_elsewhere(server: Any, path: str) -> None:
    answer = server.anonymous.get(f"/v1/trust/{path}")
    assert answer.status_code in {404, 422}, answer.text
    assert "PRIVATE" not in answer.text
