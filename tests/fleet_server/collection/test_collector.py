"""Guards from a file that is gone though a device, a rollout or a backup may need it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fleet_contract.manifest import manifest_path
from fleet_contract.messages.progress import ModelProgress, Phase
from fleet_server.backup.making import make_backup
from fleet_server.data_folder import copying
from fleet_server.devices import state_repository
from fleet_server.releases.store import Store
from fleet_server.rollouts import repository as rollouts

FLEET, MODEL = "home", "toy"
DEADLINE_S = 60.0


def _presence(session: Any, digest: str) -> None:
    row = state_repository.new_presence(
        fleet=FLEET,
        device="dev-1",
        online=False,
        birth=1,
        session="0" * 16,
        last_seen_ms=1,
        agent="1",
        active={MODEL: digest},
    )
    state_repository.save(session, row)


def _progress(held: str) -> Callable[[Any, str], None]:
    def write(session: Any, digest: str) -> None:
        item = ModelProgress(
            model=MODEL,
            rollout="",
            phase=Phase.IDLE,
            target=digest if held == "target" else "",
            active=digest if held == "active" else "",
            standby=digest if held == "standby" else "",
            generation=1,
            epoch=1,
            changed_ms=1,
        )
        state_repository.replace_progress(session, FLEET, "dev-1", [item])

    return write


def _cohort(held: str) -> Callable[[Any, str], None]:
    def write(session: Any, digest: str) -> None:
        row = rollouts.cohort_release(session, FLEET, "default", MODEL)
        setattr(row, held, digest)
        rollouts.save(session, row)

    return write


def _rollout(state: str, side: str = "candidate", number: int = 1) -> Callable[[Any, str], None]:
    def write(session: Any, digest: str) -> None:
        row = rollouts.new_rollout(
            id=f"{number:012x}",
            fleet=FLEET,
            cohort="default",
            model=MODEL,
            version="1.0.0",
            candidate=digest if side == "candidate" else "f" * 64,
            stable=digest if side == "stable" else "",
            state=state,
            plan="{}",
            created_ms=1,
            ended_ms=number,
            created_by="ann",
            correlation_id="c",
        )
        rollouts.save(session, row)

    return write


USERS = {
    "said to be active": _presence,
    "active": _progress("active"),
    "standby": _progress("standby"),
    "target": _progress("target"),
    "run by a cohort": _cohort("release"),
    "run before": _cohort("previous"),
    "drafted": _rollout("draft"),
    "rolled out": _rollout("running"),
    "returned to": _rollout("paused", "stable"),
    "returned to now": _rollout("rolling_back", "stable"),
    "was in production": _rollout("completed"),
}


@pytest.mark.parametrize("state", ["revoked", "unknown"])
@pytest.mark.parametrize("use", USERS)
def test_release_that_somebody_uses(yard: Any, use: str, state: str) -> None:
    digest = yard.release("1.0.0", "revoked")
    needed = yard.files(digest)
    if state == "unknown":
        # A table that lost it, as after a restore: the store's own manifest says what is needed.
        with yard.database.transaction() as session:
            session.connection().exec_driver_sql("DELETE FROM release")
    with yard.database.transaction() as session:
        USERS[use](session, digest)
    yard.collect()
    assert needed <= yard.stored()


@pytest.mark.parametrize("state", ["staged", "unsigned", "staging"])
def test_release_that_may_be_rolled_out_yet(yard: Any, state: str) -> None:
    yard.release("1.0.0", state)
    before = yard.stored()
    report = yard.collect()
    assert (yard.stored(), report.garbage, report.removed) == (before, [], [])
    assert report.kept_files == len(before)


def test_release_that_is_vouched_for(yard: Any) -> None:
    digest = yard.release("1.0.0", "revoked", published=True)
    yard.collect()
    assert yard.files(digest) <= yard.stored()


def test_revoked_release_goes_and_what_it_shares_stays(yard: Any) -> None:
    kept = yard.release("1.0.0")
    gone = yard.release("1.1.0", "revoked")
    shared = yard.store.put_artifact(MODEL, [b"1.0.0 golden"])  # the same content once more
    yard.age()
    lost = yard.files(gone)
    report = yard.collect()
    assert {item.path for item in report.removed} == {f"store/{path}" for path in lost}
    assert yard.files(kept) <= yard.stored()
    assert any(shared.digest in path for path in yard.stored())
    # The proof of what it was stays with its record.
    assert sum(path.startswith("provenance/") for path in yard.stored()) == 2
    assert {name for _, name in yard.audited()} == {f"store/{path}" for path in lost}
    assert yard.collect().garbage == []


def test_only_the_last_three_of_production(yard: Any) -> None:
    digests = [yard.release(f"1.{number}.0", "revoked") for number in range(4)]
    with yard.database.transaction() as session:
        for number, digest in enumerate([*digests, digests[-1]]):
            _rollout("completed", number=number + 1)(session, digest)
    first = yard.files(digests[0])
    rest = set().union(*(yard.files(digest) for digest in digests[1:]))
    yard.collect()
    assert first & yard.stored() == set()
    assert rest <= yard.stored()


def test_leftovers_of_a_crash_go_after_the_grace(yard: Any) -> None:
    yard.release("1.0.0")
    yard.store.put_artifact(MODEL, [b"of a staging that was killed"])
    yard.patches.put_artifact(MODEL, [b"a patch that nobody wrote down"])
    folder = yard.staging.incoming / ("0" * 32)
    folder.mkdir()
    os.utime(folder, (1, 1))
    yard.age()
    before = yard.stored()
    shown = yard.collector.look(dry_run=True)
    assert (len(shown.garbage), shown.removed) == (2, [])
    first = yard.collector.look(dry_run=False)
    assert (len(first.garbage), first.removed, yard.stored()) == (2, [], before)
    assert not folder.exists()
    yard.clock.wall_ms += 3_600_000 - 1
    assert yard.collector.look(dry_run=False).removed == []
    yard.clock.wall_ms += 1
    assert len(yard.collector.look(dry_run=True).garbage) == 2
    assert yard.stored() == before
    assert len(yard.collector.look(dry_run=False).removed) == 2


def test_model_that_is_being_staged_loses_nothing(yard: Any) -> None:
    yard.store.put_artifact(MODEL, [b"left behind"])
    yard.age()
    yard.collector.look(dry_run=False)
    yard.release("1.0.0", "staging")
    yard.clock.wall_ms += 3_600_000
    assert yard.collector.look(dry_run=False).removed == []


def test_same_content_pushed_again_after_the_mark(yard: Any) -> None:
    left = yard.store.put_artifact(MODEL, [b"once"])
    yard.age()
    yard.collector.look(dry_run=False)
    # Written again, but the release that it belongs to is in no table yet.
    yard.store.put_artifact(MODEL, [b"once"])
    later_s = yard.clock.wall_ms / 1000 + 1
    for entry in yard.store.files():
        os.utime(yard.folder / "store" / entry.path, (later_s, later_s))
    yard.clock.wall_ms += 3_600_000
    assert yard.collector.look(dry_run=False).removed == []
    assert any(left.digest in path for path in yard.stored())


def test_push_of_the_same_content_while_it_is_removed(
    yard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the file and its removal, whoever writes it again has to wait."""
    left = yard.store.put_artifact(MODEL, [b"once"])
    yard.age()
    [path] = yard.stored()
    target = yard.folder / "store" / path
    began, real = threading.Event(), type(target).unlink

    def put() -> None:
        began.set()
        yard.store.put_artifact(MODEL, [b"once"])

    pusher = threading.Thread(target=put)

    def unlink(file: Any, missing_ok: bool = False) -> None:
        pusher.start()
        assert began.wait(DEADLINE_S)
        real(file, missing_ok)

    with monkeypatch.context() as slow:
        slow.setattr(type(target), "unlink", unlink)
        assert yard.store.remove(path, not_since_ms=yard.clock.wall_ms)
    pusher.join(DEADLINE_S)
    assert target.read_bytes() == b"once"
    assert yard.store.find(path).digest == left.digest


def test_many_pushes_against_many_removals(tmp_path: Any) -> None:
    store = Store(tmp_path)
    path = f"artifacts/{MODEL}/{store.put_artifact(MODEL, [b'x']).digest}"
    stop = threading.Event()

    def remove() -> None:
        while not stop.is_set():
            store.remove(path, not_since_ms=1 << 60)

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        for _ in range(200):
            store.put_artifact(MODEL, [b"x"])
    finally:
        stop.set()
        remover.join(DEADLINE_S)
    store.put_artifact(MODEL, [b"x"])
    assert store.find(path) is not None
    assert not store.remove(path, not_since_ms=0)


def test_rollout_that_begins_between_look_and_removal(
    yard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = yard.release("1.0.0", "revoked")
    yard.collector.look(dry_run=False)
    yard.clock.wall_ms += 3_600_000
    real = yard.collector._mark

    def mark(*given: Any) -> None:
        real(*given)
        with yard.database.transaction() as session:
            _presence(session, digest)

    monkeypatch.setattr(yard.collector, "_mark", mark)
    assert yard.collector.look(dry_run=False).removed == []
    assert yard.files(digest) <= yard.stored()


def test_nothing_goes_while_a_backup_is_made(yard: Any) -> None:
    digest = yard.release("1.0.0", "revoked")
    yard.collector.look(dry_run=False)
    yard.clock.wall_ms += 3_600_000
    with copying(yard.folder):
        report = yard.collector.look(dry_run=False)
        assert report.removed == []
        assert yard.files(digest) <= yard.stored()
    assert yard.collector.look(dry_run=False).removed != []


def test_backup_holds_what_its_database_names(yard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector comes between the copy of the database and that of the files."""
    digest = yard.release("1.0.0", "revoked")
    yard.collector.look(dry_run=False)
    yard.clock.wall_ms += 3_600_000
    names: list[str] = []

    def progress(name: str, _size: int) -> None:
        names.append(name)
        yard.collector.look(dry_run=False)

    make_backup(yard.folder / "b.tar", yard.folder, yard.database, now_ms=1, progress=progress)
    assert {f"store/{path}" for path in yard.files(digest)} <= set(names)


def test_unreadable_manifest_of_an_unknown_release_keeps_the_model(yard: Any) -> None:
    yard.release("1.0.0", "revoked")
    with yard.database.transaction() as session:
        session.connection().exec_driver_sql("DELETE FROM release")
        _presence(session, "e" * 64)
    assert yard.store.find(manifest_path(MODEL, "e" * 64)) is None
    before = yard.stored()
    yard.collect()
    assert yard.stored() == before
