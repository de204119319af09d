"""Timing two models in turns on single rows, as the server does where there is no bench device.

Decides what is measured: one row at a time on one thread, in turns, so that whatever else the
device does hits both; medians of the processor's time and of the time that passed. What runs where,
and for whom, is decided by whoever calls.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from device_agent.inference.session import ModelSession
from device_agent.inference.tensors import Tensors

LEAST_ROUNDS, MOST_ROUNDS = 5, 400


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over ``rounds`` rows of each, in microseconds: the candidate's, then the rival's."""

    cpu_us: tuple[float, float]
    wall_us: tuple[float, float]
    rounds: int


def race(
    candidate: ModelSession,
    rival: ModelSession,
    rows: Tensors,
    *,
    most_ms: int,
    cpu_ns: Callable[[], int],
    ticks_ns: Callable[[], int],
) -> Figures:
    """Run both on single rows until the time is over, at least five times each.

    Args:
        candidate, rival: loaded models that take these rows.
        rows: the first axis is the batch; taken again from the start at its end.
        most_ms: after so long it ends.
        cpu_ns: the processor's time of this thread.
        ticks_ns: the time that passed.

    Raises:
        InputRejected: if they do not take these rows. InferenceFailed: if one of them fails.
    """
    count = len(next(iter(rows.values())))
    sessions = (candidate, rival)
    for session in sessions:
        session.check({name: array[:1] for name, array in rows.items()})
    cpu: tuple[list[int], list[int]] = ([], [])
    wall: tuple[list[int], list[int]] = ([], [])
    end_ns = ticks_ns() + most_ms * 1_000_000
    for turn in range(MOST_ROUNDS):
        if turn >= LEAST_ROUNDS and ticks_ns() > end_ns:
            break
        at = turn % count
        row = {name: array[at : at + 1] for name, array in rows.items()}
        for number in (0, 1) if turn % 2 else (1, 0):
            began_ns, began_cpu_ns = ticks_ns(), cpu_ns()
            sessions[number].run(row)
            cpu[number].append(cpu_ns() - began_cpu_ns)
            wall[number].append(ticks_ns() - began_ns)
    return Figures(_medians_us(cpu), _medians_us(wall), len(cpu[0]))


def _medians_us(times_ns: tuple[list[int], list[int]]) -> tuple[float, float]:
    return statistics.median(times_ns[0]) / 1_000, statistics.median(times_ns[1]) / 1_000
