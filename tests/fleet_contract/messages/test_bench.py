"""Guards the server from what a bench device may send: any bytes give a message or a refusal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_contract import codec, limits
from fleet_contract.errors import Reason, Refused
from fleet_contract.manifest import Capabilities
from fleet_contract.messages.bench import BenchPoll, BenchResult, Timed, read_poll, read_result

READERS: dict[str, Any] = {
    "poll": (read_poll, BenchPoll(Capabilities({"litert": "2"}, "aarch64", 0, 0, 1), 5)),
    "result": (read_result, BenchResult([Timed("ab" * 32, None, "", 1.5, 3.0, 1.75, 3.5, 9)])),
}


@pytest.mark.parametrize("name", READERS)
def test_round_trip(name: str) -> None:
    read, message = READERS[name]
    assert read(codec.encode_json(message)) == message


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_any_bytes_give_a_message_or_a_refusal(name: str, data: st.DataObject) -> None:
    read, message = READERS[name]
    good = codec.encode_json(message)
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, len(good)))
    damaged = good[:start] + data.draw(st.binary(max_size=12)) + good[end:]
    try:
        result = read(damaged)
    except Refused as refused:
        assert refused.reason is Reason.MALFORMED
    else:
        assert isinstance(result, type(message))


@pytest.mark.parametrize("name", READERS)
def test_size_is_checked_first(name: str) -> None:
    with pytest.raises(Refused) as caught:
        READERS[name][0](b" " * (limits.STATUS_BYTES + 1))
    assert caught.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "timed",
    [
        Timed("ab" * 32, candidate_us=-1.0),
        Timed("ab" * 32, rival_us=1e13),
        Timed("../" * 21 + "x"),
        Timed("ab" * 32, rounds=-1),
        Timed("ab" * 32, detail="x" * 301),
    ],
    ids=str,
)
def test_impossible_figures_are_refused(timed: Timed) -> None:
    with pytest.raises(Refused):
        read_result(codec.encode_json(BenchResult([timed])))


def test_longest_result_fits() -> None:
    one = Timed("ab" * 32, Reason.UNCONFIRMED_GENERATION, "x" * 300, 1.1e11, 1.1e11)
    longest = BenchResult([one] * limits.BENCH_CANDIDATES)
    assert read_result(codec.encode_json(longest)) == longest
