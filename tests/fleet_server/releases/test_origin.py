"""Guards from a release whose files are not what its statement says they were made of."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from fleet_server.audit import service as audit
from fleet_server.errors import NotFound
from fleet_server.releases import origin
from fleet_server.releases.origin import Signature


@pytest.fixture
def staged(bench: Any, staging: Any, push: Callable[..., Any]) -> Any:
    assert push().status_code == 202
    record = bench.settled()
    assert record.state == "staged", record.problem
    return record


def test_statement_names_all_that_went_in_and_came_out(
    bench: Any, staging: Any, staged: Any, client: Any
) -> None:
    answer = client.get("/v1/models/detector/releases/1.0.0/provenance").json()
    assert (answer["signature"], answer["findings"]) == ("believed", [])
    assert answer["digest"] == staged.provenance
    proof = origin.prove(staged, staging.store, bench.keyring.checkpoint_keys())
    assert proof.envelope.decode() == answer["envelope"]
    # The audit has its digest: a key that is stolen later cannot write another past.
    with bench.database.reading() as session:
        entries = audit.of_release(session, "detector", "1.0.0")
    assert [e.detail["provenance"] for e in entries if e.action == "release.stage"] == [
        answer["digest"]
    ]


def test_statement_that_was_swapped_in_the_store_is_not_shown(
    bench: Any, staging: Any, staged: Any, client: Any
) -> None:
    path = bench.folder / "store" / "provenance" / "detector" / f"{staged.provenance}.json"
    path.write_bytes(path.read_bytes().replace(b"payload", b"paxload", 1))
    answer = client.get("/v1/models/detector/releases/1.0.0/provenance")
    assert answer.status_code == 404
    assert answer.json()["type"].endswith(":provenance_lost")


def test_statement_of_a_key_that_retired_is_told_apart(
    bench: Any, staging: Any, staged: Any
) -> None:
    proof = origin.prove(staged, staging.store, {"0" * 64: bytes(32)})
    assert (proof.signature, proof.findings) == (Signature.FORMER, [])


def test_release_with_another_source_is_found(bench: Any, staging: Any, staged: Any) -> None:
    upload = dataclasses.replace(staged.upload, source_digest="f" * 64)
    other = dataclasses.replace(staged, upload=upload)
    proof = origin.prove(other, staging.store, bench.keyring.checkpoint_keys())
    assert "the model went in as" in proof.findings[0]


def test_release_without_a_statement_says_so(bench: Any, staging: Any) -> None:
    record = bench.register(bench.upload())
    with pytest.raises(NotFound, match="no statement"):
        origin.prove(record, staging.store, {})
