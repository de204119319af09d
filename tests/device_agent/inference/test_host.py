"""The host keeps a working model whatever step fails, and counts each call for its release."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from device_agent.errors import InputRejected, ModelDisabled, NoModel, StepFailed
from device_agent.inference.host import ModelHost
from fleet_contract.errors import Reason
from fleet_contract.messages.report import Role, Window, check_sketches


def test_prediction_names_its_release(host: ModelHost, workshop: Any) -> None:
    with pytest.raises(NoModel):
        host.predict({"x": workshop.rows})
    release = workshop.good()
    release.prepare(host)
    with pytest.raises(NoModel):  # built is not active
        host.predict({"x": workshop.rows})
    host.activate(release.digest, now_ms=1_000)
    answer = host.predict({"x": workshop.rows})
    assert answer.release == host.active == release.digest
    assert answer["y"].shape == (8, 3)


@pytest.mark.parametrize("kind", ["truncated", "wrong", "replaced"])
def test_refused_release_leaves_the_active_one_alone(
    host: ModelHost, workshop: Any, kind: str
) -> None:
    good = workshop.good()
    good.prepare(host)
    host.activate(good.digest, now_ms=1_000)
    if kind == "truncated":
        bad, reason = workshop.release(workshop.linear(2.0)[:-50]), Reason.BROKEN_MODEL
    elif kind == "wrong":
        bad, reason = workshop.release(workshop.linear(2.0)), Reason.GOLDEN_MISMATCH
    else:
        bad, reason = workshop.good(2.0), Reason.WRONG_HASH
        bad.path.write_bytes(workshop.linear(3.0))
    with pytest.raises(StepFailed) as caught:
        bad.prepare(host)
    assert caught.value.reason is reason
    with pytest.raises(StepFailed) as caught:
        host.activate(bad.digest, now_ms=2_000)
    assert caught.value.reason is Reason.ACTIVATION_FAILED
    assert host.predict({"x": workshop.rows}).release == good.digest
    assert host.collect(now_ms=3_000, close=True)[0].errors == 0


def test_revert_reads_no_model(host: ModelHost, workshop: Any) -> None:
    first, second = workshop.good(), workshop.good(2.0)
    for release in (first, second):
        release.prepare(host)
        host.activate(release.digest, now_ms=1_000)
    assert (host.active, host.standby) == (second.digest, first.digest)
    for release in (first, second):  # nothing left to read
        release.path.unlink()
        release.golden_path.unlink()
    assert host.revert(now_ms=2_000) == first.digest
    assert host.predict({"x": workshop.rows}).release == first.digest
    first.prepare(host)  # as the core may ask: built already
    host.activate(second.digest, now_ms=2_500)
    assert host.active == second.digest
    host.drop_standby()
    with pytest.raises(StepFailed):
        host.revert(now_ms=3_000)
    assert host.predict({"x": workshop.rows}).release == second.digest


def test_disabled_release_comes_back_with_an_activation(host: ModelHost, workshop: Any) -> None:
    release = workshop.good()
    release.prepare(host)
    host.activate(release.digest, now_ms=1_000)
    host.disable()
    with pytest.raises(ModelDisabled):
        host.predict({"x": workshop.rows})
    assert host.disabled
    host.activate(release.digest, now_ms=2_000)
    assert host.predict({"x": workshop.rows}).release == release.digest
    (window,) = host.collect(now_ms=3_000, close=True)
    assert (window.predictions, window.errors) == (1, 0)  # being disabled is nobody's error


def test_each_stretch_of_being_active_has_windows_of_its_own(
    host: ModelHost, workshop: Any
) -> None:
    first, second = workshop.good(), workshop.good(2.0)
    windows: list[Window] = []
    for number, release in enumerate((first, second, first)):
        release.prepare(host, now_ms=1_000)
        host.activate(release.digest, now_ms=1_000)
        for _ in range(number + 1):
            host.predict({"x": workshop.rows})
    windows += host.collect(now_ms=1_000, close=False)
    windows += host.collect(now_ms=1_000, close=True)
    keys = [(window.release, window.start_ms) for window in windows]
    assert keys[0] != keys[2] and keys[2] == keys[3]
    assert [window.predictions for window in windows] == [1, 2, 3, 3]
    assert [window.closed for window in windows] == [True, True, False, True]
    assert windows[3].sequence > windows[2].sequence
    for window in windows:
        check_sketches(window, workshop.schema)


def test_wrong_input_is_an_error_of_the_release(host: ModelHost, workshop: Any) -> None:
    release = workshop.good()
    release.prepare(host)
    host.activate(release.digest, now_ms=1_000)
    with pytest.raises(InputRejected):
        host.predict({"x": workshop.rows.astype(np.float64)})
    host.predict({"x": workshop.rows})
    figures = host.figures()
    assert figures is not None
    assert (figures.release, figures.predictions, figures.errors) == (release.digest, 2, 1)


def test_shadow_runs_beside_and_then_takes_over(host: ModelHost, workshop: Any, until: Any) -> None:
    stable, candidate = workshop.good(), workshop.good(2.0)
    stable.prepare(host)
    host.activate(stable.digest, now_ms=1_000)
    candidate.prepare(host)
    host.start_shadow(candidate.digest, now_ms=1_000)
    assert host.predict({"x": workshop.rows}).release == stable.digest

    def shadow_window() -> Window | None:
        windows = host.collect(now_ms=2_000, close=False)
        return next((w for w in windows if w.role is Role.SHADOW and w.predictions), None)

    until(lambda: shadow_window() is not None)
    seen = shadow_window()
    assert seen is not None and seen.pairs is not None
    assert seen.pairs.rows == seen.pairs.agreements == 8
    host.activate(candidate.digest, now_ms=3_000)
    assert host.predict({"x": workshop.rows}).release == candidate.digest
    windows = host.collect(now_ms=4_000, close=True)
    assert [(w.role, w.release) for w in windows] == [
        (Role.SHADOW, candidate.digest),
        (Role.ACTIVE, stable.digest),
        (Role.ACTIVE, candidate.digest),
    ]
    assert all(w.closed for w in windows)


def test_active_release_is_not_shadowed(host: ModelHost, workshop: Any) -> None:
    release = workshop.good()
    release.prepare(host)
    host.activate(release.digest, now_ms=1_000)
    with pytest.raises(StepFailed):
        host.start_shadow(release.digest, now_ms=1_000)
    with pytest.raises(StepFailed):
        host.start_shadow("0" * 64, now_ms=1_000)


def test_candidate_dropped_while_it_is_shadowed(host: ModelHost, workshop: Any) -> None:
    stable, candidate = workshop.good(), workshop.good(2.0)
    stable.prepare(host)
    host.activate(stable.digest, now_ms=1_000)
    candidate.prepare(host)
    host.start_shadow(candidate.digest, now_ms=1_000)
    host.drop_candidate(now_ms=2_000)
    with pytest.raises(StepFailed):
        host.activate(candidate.digest, now_ms=2_000)
    roles = [window.role for window in host.collect(now_ms=3_000, close=True)]
    assert roles == [Role.SHADOW, Role.ACTIVE]


def test_restart_seats_active_and_standby_without_a_probe(workshop: Any) -> None:
    class NoProber:
        def probe(self, *_: object) -> None:
            raise AssertionError("what this device ran already is not tried again")

    from device_agent.inference.session import OnnxRuntime

    host = ModelHost(OnnxRuntime(), NoProber(), ticks_ns=lambda: 0)  # type: ignore[arg-type]
    active, standby = workshop.good(), workshop.good(2.0)
    for release in (active, standby):
        host.prepare(
            release.digest,
            release.manifest,
            release.variant,
            release.path,
            release.golden_path,
            now_ms=1_000,
            probed_before=True,
        )
        if release is active:
            host.activate(release.digest, now_ms=1_000)
        else:
            host.seat_standby(release.digest)
    assert (host.active, host.standby) == (active.digest, standby.digest)
    assert host.revert(now_ms=2_000) == standby.digest
    host.close(now_ms=3_000)


def test_swaps_under_load_lose_and_double_no_count(host: ModelHost, workshop: Any) -> None:
    releases = [workshop.good(), workshop.good(2.0)]
    releases[0].prepare(host)
    host.activate(releases[0].digest, now_ms=1_000)
    stop = threading.Event()
    answered: list[str] = []

    def work() -> None:
        while not stop.is_set():
            answered.append(host.predict({"x": workshop.rows}).release)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    windows: list[Window] = []
    for number in range(1, 11):
        release = releases[number % 2]
        release.prepare(host, now_ms=1_000 + number)
        host.activate(release.digest, now_ms=1_000 + number)
        windows += host.collect(now_ms=1_000 + number, close=number % 3 == 0)
    stop.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    windows += host.collect(now_ms=2_000, close=True)
    closed = [window for window in windows if window.closed]
    for release in releases:
        counted = sum(w.predictions for w in closed if w.release == release.digest)
        assert counted == answered.count(release.digest)
    assert sum(window.errors for window in closed) == 0
    assert len({(w.release, w.role, w.start_ms) for w in closed}) == len(closed)
