"""Guards from uploads that a crash loses, doubles, or tries for ever."""

import errno
import os
import threading
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from fleet_server.audit import service as audit
from fleet_server.errors import Conflict, NotFound
from fleet_server.releases import pipeline, service
from fleet_server.releases.records import ReleaseRecord
from fleet_server.releases.staging import MOST_ATTEMPTS
from fleet_server.releases.states import ReleaseState, Step

WAIT_S = 60.0


class _Killed(BaseException):
    """The process is gone: nothing that would run on an exception may be relied on."""


def _kill_after(bench: Any, record: ReleaseRecord, last: str | None) -> None:
    """Do what the worker does up to the end of a step, and no more."""
    with bench.database.transaction() as session:
        service.begin(session, record.model, record.version, now_ms=2_000)

    def die(step: Step) -> None:
        with bench.database.transaction() as session:
            service.add_step(session, record.model, record.version, step, now_ms=2_000)
        if step.name == last:
            raise _Killed

    if last is None:
        return
    job = bench.job(
        record.upload,
        counter=record.counter,
        created_ms=record.received_ms,
        invocation=record.correlation_id,
    )
    with pytest.raises(_Killed):
        pipeline.stage(job, die)


@pytest.mark.parametrize("last", [None, *pipeline.STEPS])
def test_killed_while_staging(bench: Any, last: str | None) -> None:
    record = bench.register(bench.upload())
    _kill_after(bench, record, last)
    staging = bench.new_staging()
    staging.start()
    found = bench.settled()
    staging.stop()
    assert (found.state, found.attempts) == (ReleaseState.STAGED, 2)
    assert [step.name for step in found.steps] == list(pipeline.STEPS)
    # The second attempt made the very same release: one manifest, three artifacts, one
    # statement of its origin. A card also says how long it took, so each attempt has its own.
    cards = [path for path in bench.stored() if "cards" in path.parts]
    assert len(cards) == (2 if last == "sealing" else 1)
    assert len(bench.stored()) - len(cards) == 5
    assert list((bench.folder / "incoming").iterdir()) == []


def test_upload_that_brings_the_server_down_each_time(bench: Any) -> None:
    record = bench.register(bench.upload())
    for _ in range(MOST_ATTEMPTS):
        _kill_after(bench, record, "examination")
    staging = bench.new_staging()
    staging.start()
    found = bench.settled()
    staging.stop()
    assert found.state is ReleaseState.REFUSED
    assert found.problem is not None and found.problem.code == "interrupted"
    assert "push" in found.problem.advice
    assert bench.stored() == []


def test_upload_whose_files_are_gone(bench: Any) -> None:
    upload = bench.upload()
    bench.register(upload)
    (bench.folder / "incoming" / upload.folder / "model.onnx").unlink()
    staging = bench.new_staging()
    staging.start()
    found = bench.settled()
    staging.stop()
    assert found.problem is not None and found.problem.code == "interrupted"


def test_two_releases_of_a_model_pushed_at_once(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PostgreSQL lets them: neither sees what the other writes before it is written."""
    bench.register(bench.upload())
    monkeypatch.setattr("fleet_server.releases.repository.highest_counter", lambda *_: 0)
    with pytest.raises(Conflict) as caught:
        bench.register(bench.upload("1.1.0"))
    assert caught.value.code == "pushed_at_once"
    monkeypatch.undo()
    assert bench.register(bench.upload("1.1.0")).counter == 2


def test_files_of_an_upload_that_was_never_registered(bench: Any) -> None:
    bench.upload("9.9.9")
    staging = bench.new_staging()
    staging.start()
    staging.stop()
    assert list((bench.folder / "incoming").iterdir()) == []


def test_stopping_the_server_counts_as_no_crash(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    examine = pipeline.STEPS["examination"]

    def slow(arg: Any) -> Any:
        reached.set()
        assert go_on.wait(WAIT_S)
        return examine(arg)

    monkeypatch.setitem(pipeline.STEPS, "examination", slow)
    bench.register(bench.upload())
    staging = bench.new_staging()
    staging.start()
    assert reached.wait(WAIT_S)
    stopping = threading.Thread(target=staging.stop, args=(WAIT_S,))
    stopping.start()
    while not staging.stopping:
        stopping.join(0.01)
    go_on.set()
    stopping.join(WAIT_S)
    assert not stopping.is_alive()
    assert (bench.record().state, bench.record().attempts) == (ReleaseState.STAGING, 0)
    second = bench.new_staging()
    second.start()
    assert bench.settled().state is ReleaseState.STAGED
    second.stop()


def test_step_that_breaks_down_is_no_end_of_the_worker(
    bench: Any, staging: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> Any:
        raise ZeroDivisionError("secret detail")

    with monkeypatch.context() as patch:
        patch.setitem(pipeline.STEPS, "parity", broken)
        bench.register(bench.upload("1.0.0"))
        staging.submit("detector", "1.0.0")
        found = bench.settled("1.0.0")
    assert found.problem is not None and found.problem.code == "broke_down"
    assert "secret" not in found.problem.detail
    bench.register(bench.upload("1.0.1"))
    staging.submit("detector", "1.0.1")
    assert bench.settled("1.0.1").state is ReleaseState.STAGED


def test_versions_never_change(bench: Any, staging: Any) -> None:
    bench.register(bench.upload())
    with pytest.raises(Conflict):
        bench.register(bench.upload())
    staging.submit("detector", "1.0.0")
    bench.settled()
    with pytest.raises(Conflict):
        bench.register(bench.upload())


def test_what_others_see_of_a_release(bench: Any, staging: Any) -> None:
    bench.register(bench.upload())
    with bench.database.reading() as session, pytest.raises(Conflict):
        service.staged_release(session, "detector", "1.0.0")
    staging.submit("detector", "1.0.0")
    digest = bench.settled().digest
    with bench.database.reading() as session:
        view = service.staged_release(session, "detector", "1.0.0")
        assert service.release_by_digest(session, digest) == view
        assert service.schema_of(session, digest) == view.manifest.features
        assert service.schema_of(session, "0" * 64) is None
        with pytest.raises(NotFound):
            service.release_by_digest(session, "0" * 64)
        with pytest.raises(NotFound):
            service.staged_release(session, "detector", "2.0.0")
        entries = [(entry.action, entry.outcome, entry.user) for entry in audit.newest(session)]
    assert (view.digest, view.ref.digest) == (digest, digest)
    assert view.ref.manifest == f"manifests/detector/{digest}.json"
    assert view.baseline.outputs.categorical[0].rows == 100
    assert entries == [("release.stage", "staged", "system"), ("release.push", "accepted", "ann")]


def test_counter_grows_over_refused_releases(bench: Any, staging: Any) -> None:
    counters = []
    for version, model in (("1.0.0", None), ("1.1.0", b"broken"), ("1.1.0", None)):
        record = bench.register(bench.upload(version, model=model))
        staging.submit("detector", version)
        bench.settled(version)
        counters.append(record.counter)
    assert counters == [1, 2, 3]
    assert bench.record("1.1.0").manifest.release_counter == 3


@pytest.mark.parametrize("what", ["add_step", "mark_staged"])
def test_what_cannot_be_written_down_is_tried_again(
    bench: Any, staging: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    mark = getattr(service, what)
    lost: list[int] = []

    def away_once(*arguments: Any, **given: Any) -> None:
        if not lost:
            lost.append(1)
            raise OperationalError("UPDATE", {}, ConnectionError("the database is restarted"))
        mark(*arguments, **given)

    monkeypatch.setattr(service, what, away_once)
    monkeypatch.setattr("fleet_server.releases.staging.RETRY_S", 0.0)
    bench.register(bench.upload())
    staging.submit("detector", "1.0.0")
    found = bench.settled()
    assert lost and (found.state, found.attempts) == (ReleaseState.STAGED, 2)
    assert [step.name for step in found.steps] == list(pipeline.STEPS)


def test_what_is_staged_stays_so_whatever_fails_after_it(
    bench: Any, staging: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled = threading.Event()

    def broken() -> None:
        settled.set()
        raise OSError("the repository cannot be read")

    monkeypatch.setattr(staging, "settle", broken)
    monkeypatch.setattr("fleet_server.releases.staging.RETRY_S", 0.0)
    bench.register(bench.upload())
    staging.submit("detector", "1.0.0")
    assert settled.wait(WAIT_S)
    bench.register(bench.upload("1.0.1"))
    staging.submit("detector", "1.0.1")
    # The second is staged after the first was looked at again.
    assert bench.settled("1.0.1").state is ReleaseState.STAGED
    found = bench.record()
    assert (found.state, found.attempts) == (ReleaseState.STAGED, 1)
    assert [step.name for step in found.steps] == list(pipeline.STEPS)


def test_disk_that_is_full_while_staging_is_named(
    bench: Any, staging: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(pipeline.STEPS, "parity", full)
    bench.register(bench.upload())
    staging.submit("detector", "1.0.0")
    problem = bench.settled().problem
    assert (problem.gate, problem.code) == ("staging", "disk_full")
    assert "Make room" in problem.advice
