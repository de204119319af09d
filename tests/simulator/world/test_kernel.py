"""Virtual time: what would make one seed give two stories."""

from functools import partial

from simulator.world.kernel import Kernel


def test_events_of_one_moment_change_places() -> None:
    kernel = Kernel(1000)
    seen: list[int] = []
    for number in range(50):
        kernel.at(1500, partial(seen.append, number))
    kernel.run(lambda: len(seen) == 50, limit_ms=2000)
    assert seen == list(range(50))
    assert kernel.now_ms == 1500


def test_time_runs_backwards() -> None:
    kernel = Kernel(1000)
    seen: list[int] = []
    kernel.at(1200, lambda: kernel.at(1100, lambda: seen.append(kernel.now_ms)))
    kernel.run(lambda: bool(seen), limit_ms=2000)
    assert seen == [1200], "an event asked for in the past happens now"


def test_cancelled_event_happens() -> None:
    kernel = Kernel(0)
    seen: list[str] = []
    kernel.after(10, lambda: seen.append("cancelled")).cancel()
    kernel.after(20, lambda: seen.append("kept"))
    kernel.run(lambda: bool(seen), limit_ms=100)
    assert seen == ["kept"]


def test_waiting_for_what_never_happens() -> None:
    kernel = Kernel(0)
    kernel.after(500, lambda: None)
    assert not kernel.run(lambda: False, limit_ms=499)
    assert kernel.now_ms == 0, "time does not pass beyond the limit"
    assert not kernel.run(lambda: False, limit_ms=1000)


def test_trace_ignores_order_or_time() -> None:
    def traced(*facts: str, apart_ms: int = 0) -> str:
        kernel = Kernel(0)
        for fact in facts:
            kernel.now_ms += apart_ms
            kernel.note(fact)
        return kernel.digest()

    assert traced("a", "b") == traced("a", "b")
    assert traced("a", "b") != traced("b", "a")
    assert traced("a", "b") != traced("a", "b", apart_ms=1)
