"""Guards from a record that can be altered, removed or moved without a trace.

The tests change the table itself, as somebody with the database's password would.
"""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from fleet_contract.trust import envelope
from fleet_server.audit import chain, service, verification
from fleet_server.audit.chain import Walk
from fleet_server.audit.verification import Checkpoint, Seal, Verification
from fleet_server.database import Database

RECORDS = 9
SIGNED = 6


def seal_of(seed: int) -> Seal:
    key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    signers = {envelope.key_id(public): key.sign}
    return Seal(
        lambda payload: envelope.seal(verification.PAYLOAD_TYPE, payload, signers),
        lambda: {envelope.key_id(public): public},
    )


SEAL = seal_of(1)


def add(database: Database, *names: str) -> None:
    with database.transaction() as session:
        for name in names:
            service.record(
                session,
                action="cohort.create",
                resource_type="cohort",
                resource_name=name,
                outcome="done",
                user="ann",
                correlation_id="c-1",
                detail={"priority": 10, "note": "ü\x00\ud800"},
                now_ms=1_795_000_000_123,
                model_name="digits",
                model_version="1.0.0",
            )


def sign(database: Database, seal: Seal = SEAL, fleet: str = "home") -> Checkpoint:
    with database.transaction() as session:
        made = verification.make_checkpoint(session, seal, fleet=fleet, now_ms=7)
    assert made is not None
    return made


def verify(database: Database, seal: Seal = SEAL) -> Verification:
    with database.reading() as session:
        return verification.verify(session, seal.believed(), fleet="home")


def execute(database: Database, statement: str, **values: Any) -> None:
    with database.transaction() as session:
        session.connection().execute(text(statement), values)


def rows(database: Database) -> list[tuple[int, str, str]]:
    with database.reading() as session:
        query = "SELECT sequence, record, hash FROM audit_record ORDER BY sequence"
        return [tuple(row) for row in session.connection().execute(text(query))]


@pytest.fixture
def filled(database: Database) -> Database:
    add(database, *(f"cohort-{number}" for number in range(SIGNED)))
    sign(database)
    add(database, *(f"later-{number}" for number in range(RECORDS - SIGNED)))
    return database


def test_chain_that_nobody_touched(filled: Database) -> None:
    found = verify(filled)
    assert found.findings == () and found.intact
    assert (found.records, found.signed_sequence, found.checkpoints) == (RECORDS, SIGNED, 1)


def test_record_with_the_fields_that_an_auditor_asks_for(filled: Database) -> None:
    record = json.loads(rows(filled)[0][1])
    wanted = (
        "timestamp agent user environment command resource_type resource_name action model_name "
        "model_version previous_version change_ticket outcome rollback_config duration_ms reason "
        "skipped_safeguards"
    )
    assert set(wanted.split()) <= set(record)
    assert record["timestamp"] == "2026-11-18T11:06:40.123Z"
    assert service.at_ms(record["timestamp"]) == 1_795_000_000_123
    assert (record["user"], record["agent"]) == ("ann", "edgefleet-server")


@pytest.fixture(scope="module")
def pristine(migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a chain in it, to be copied and spoiled."""
    path = tmp_path_factory.mktemp("chain") / "pristine.sqlite"
    shutil.copy(migrated_file, path)
    with closing(Database(f"sqlite:///{path}")) as database:
        add(database, *(f"cohort-{number}" for number in range(SIGNED)))
        sign(database)
        add(database, *(f"later-{number}" for number in range(RECORDS - SIGNED)))
    return path


def spoiled(database: Database, seed: int, kind: str) -> None:
    """Change one thing in the table, at a place and in a way that the seed decides."""
    dice = random.Random(seed)
    sequence = dice.randint(1, RECORDS)
    kept = rows(database)[sequence - 1][1]
    if kind == "byte":
        index = dice.randrange(len(kept))
        other = dice.choice([c for c in '0a}, "' if c != kept[index]])
        changed = kept[:index] + other + kept[index + 1 :]
        execute(
            database, "UPDATE audit_record SET record=:r WHERE sequence=:s", r=changed, s=sequence
        )
    elif kind == "field":
        # As somebody does who knows how the hash is made, and writes that anew as well.
        record = json.loads(kept)
        record[dice.choice(["user", "outcome", "reason", "action", "resource_name"])] = "eve"
        changed = chain.canonical(record)
        execute(
            database,
            "UPDATE audit_record SET record=:r, hash=:h WHERE sequence=:s",
            r=changed,
            h=chain.digest(changed),
            s=sequence,
        )
    elif kind == "remove":
        execute(database, "DELETE FROM audit_record WHERE sequence=:s", s=sequence)
    elif kind == "column":
        column = dice.choice(["model_name", "model_version"])
        execute(database, f"UPDATE audit_record SET {column}='other' WHERE sequence=:s", s=sequence)
    elif kind == "hash":
        execute(
            database, "UPDATE audit_record SET hash=:h WHERE sequence=:s", h="0" * 64, s=sequence
        )
    else:
        place = dice.choice([number for number in range(1, RECORDS + 1) if number != sequence])
        for old, new in ((sequence, -1), (place, sequence), (-1, place)):
            execute(database, "UPDATE audit_record SET sequence=:n WHERE sequence=:o", n=new, o=old)


@given(
    st.integers(0, 2**32), st.sampled_from(["byte", "field", "remove", "column", "hash", "move"])
)
@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_altered_removed_or_moved_without_a_trace(
    pristine: Path, tmp_path: Path, seed: int, kind: str
) -> None:
    copy = tmp_path / "copy.sqlite"
    shutil.copy(pristine, copy)
    with closing(Database(f"sqlite:///{copy}")) as database:
        spoiled(database, seed, kind)
        assert not verify(database).intact
    for leftover in tmp_path.glob("copy.sqlite*"):
        leftover.unlink()


def test_chain_that_was_written_anew_from_a_record_on(filled: Database) -> None:
    """Everything fits together again; only the signature tells."""
    previous = rows(filled)[1][2]
    for sequence, text_of_record, _ in rows(filled)[2:]:
        record = json.loads(text_of_record)
        record["previous"] = previous
        if sequence == 3:
            record["user"] = "eve"
        changed = chain.canonical(record)
        previous = chain.digest(changed)
        execute(
            filled,
            "UPDATE audit_record SET record=:r, hash=:h WHERE sequence=:s",
            r=changed,
            h=previous,
            s=sequence,
        )
    execute(filled, "UPDATE audit_head SET hash=:h", h=previous)
    problems = [item.problem for item in verify(filled).findings]
    assert problems == ["altered: it is not what a checkpoint vouches for"]


def test_end_that_was_cut_off(filled: Database) -> None:
    """Below the last checkpoint it is found even with a new head; above it the head tells."""
    execute(filled, "DELETE FROM audit_record WHERE sequence > 7")
    assert not verify(filled).intact
    execute(filled, "UPDATE audit_head SET sequence=7, hash=:h", h=rows(filled)[-1][2])
    assert verify(filled).intact, "the known limit: after the last checkpoint"
    execute(filled, "DELETE FROM audit_record WHERE sequence > 4")
    execute(filled, "UPDATE audit_head SET sequence=4, hash=:h", h=rows(filled)[-1][2])
    assert "missing: a checkpoint vouches for it" in {
        item.problem for item in verify(filled).findings
    }


def test_checkpoint_by_somebody_else(filled: Database) -> None:
    sign(filled, seal_of(2))
    # A key of the past proves nothing and spoils nothing while one of today vouches.
    assert verify(filled).intact
    assert verify(filled).signed_sequence == SIGNED
    assert not verify(filled, seal_of(3)).intact


def test_checkpoint_of_another_record_or_fleet(filled: Database) -> None:
    execute(filled, "UPDATE audit_checkpoint SET sequence=5")
    assert not verify(filled).intact
    execute(filled, "DELETE FROM audit_checkpoint")
    sign(filled, fleet="work")
    assert not verify(filled).intact


def test_checkpoint_twice_at_the_same_record(filled: Database) -> None:
    assert sign(filled) == sign(filled)


def test_end_that_only_a_key_of_the_past_signed(filled: Database) -> None:
    sign(filled)
    sign(filled, seal_of(2))
    found = verify(filled, seal_of(2))
    assert found.intact and found.signed_sequence == RECORDS


def test_export_that_proves_nothing_elsewhere(filled: Database) -> None:
    checkpoint = sign(filled)
    lines = exported(filled)
    found = verification.verify_export(iter(lines), [checkpoint], SEAL.believed(), fleet="home")
    assert found.intact and found.signed_sequence == RECORDS
    for spoil in (
        lines[:-1],
        lines[1:],
        [lines[1], lines[0], *lines[2:]],
        [*lines[:3], lines[3].replace("ann", "eve"), *lines[4:]],
        [*lines[:3], "not json\n", *lines[4:]],
        [*lines[:3], "[" * 100_000, *lines[4:]],
        [],
    ):
        broken = verification.verify_export(
            iter(spoil), [checkpoint], SEAL.believed(), fleet="home"
        )
        assert not broken.intact


def exported(database: Database) -> list[str]:
    lines: list[str] = []
    with database.reading() as session:
        while page := verification.export(session, after=len(lines), count=4):
            lines += page.splitlines(keepends=True)
    return lines


def test_writers_at_the_same_time(database: Database) -> None:
    write_together(database, [database] * 4)


@pytest.mark.postgres
def test_replicas_at_the_same_time(postgres_url: str) -> None:
    """Each replica has its own connections; transactions lock other rows in any order."""
    replicas = [Database(postgres_url) for _ in range(4)]
    replicas[0].migrate()
    write_together(replicas[0], replicas)
    for replica in replicas:
        replica.close()


def write_together(database: Database, writers: list[Database]) -> None:
    failed: list[BaseException] = []

    def write(writer: Database, number: int) -> None:
        try:
            for turn in range(8):
                add(writer, *(f"writer-{number}-{turn}-{part}" for part in range(3)))
        except BaseException as error:
            failed.append(error)

    threads = [
        threading.Thread(target=write, args=(writer, number))
        for number, writer in enumerate(writers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert (verify(database).records, verify(database).findings) == (len(writers) * 24, ())


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=5))
@example([{"\ud800": "\x00", "a": 1e308}, {"sequence": 9, "previous": "x"}])
def test_document_whose_text_is_not_its_own(documents: list[dict[str, Any]]) -> None:
    lines = list(sealed(documents))
    walk = Walk()
    for link in chain.links(lines):
        assert link.text.isascii() and "\n" not in link.text
        walk.step(link)
    assert walk.findings == []
    assert walk.sequence == len(documents)


def sealed(documents: list[dict[str, Any]]) -> Iterator[str]:
    previous = chain.GENESIS
    for sequence, document in enumerate(documents, 1):
        line, previous = chain.seal(document, sequence=sequence, previous=previous)
        yield line + "\n"


@given(st.lists(st.text(max_size=60), max_size=6))
def test_export_that_breaks_the_reader(lines: list[str]) -> None:
    walk = Walk()
    for link in chain.links(lines):
        walk.step(link)
    assert bool(walk.findings) == bool(lines)
