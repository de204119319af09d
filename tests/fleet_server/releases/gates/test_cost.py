"""Guards from a release that devices have no time or memory for."""

from typing import Any

from fleet_server.releases.gates.given import Cost

MIB = 1024**2


def test_twice_as_slow_as_production(given: Any, refusal: Any) -> None:
    problem = refusal(given(cost=Cost(2_000, 1_000, MIB, MIB)))
    assert (problem.gate, problem.code) == ("latency", "latency_failed")
    assert (problem.figure, problem.bound) == (2_000, 1_500)
    assert "not the target" in problem.detail


def test_figures_of_a_bench_device_say_so(given: Any, refusal: Any, results: Any) -> None:
    where = "bench device pi-1 (hardware=pi4)"
    problem = refusal(given(cost=Cost(2_000, 1_000, MIB, MIB, where)))
    assert problem.detail.endswith(f"Measured on {where}.")
    memory = results(given(cost=Cost(1_000, 1_000, MIB, MIB, where)))["memory_bytes"]
    assert "not the target" in memory.note, "memory is measured on the server"


def test_twice_the_memory_of_production(given: Any, refusal: Any) -> None:
    problem = refusal(given(cost=Cost(1_000, 1_000, 200 * MIB, 100 * MIB)))
    assert (problem.gate, problem.code) == ("memory", "memory_failed")
    assert (problem.figure, problem.bound) == (200 * MIB, 150 * MIB)


def test_small_model_may_be_many_times_slower(given: Any, results: Any) -> None:
    found = results(given(cost=Cost(40, 8, 10 * MIB, MIB)))
    assert found["latency_us"].bound == 208
    assert found["memory_bytes"].bound == 17 * MIB


def test_first_release_has_nothing_to_be_compared_with(given: Any, results: Any) -> None:
    assert "latency_us" not in results(given())
