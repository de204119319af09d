"""Guards the state machine: an end is an end, and a rollback never turns forward."""

from __future__ import annotations

import pytest

from fleet_server.errors import Conflict
from fleet_server.rollouts.states import (
    ACTIVE,
    ENDED,
    TABLE,
    Action,
    RolloutState,
    advance,
    diagram,
)


def test_rolled_back_rollout_goes_forward_again() -> None:
    reachable = {RolloutState.ROLLING_BACK}
    while True:
        more = {after for (before, _), after in TABLE.items() if before in reachable} | reachable
        if more == reachable:
            break
        reachable = more
    assert reachable == {RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK}


def test_state_that_nobody_looks_after() -> None:
    assert {RolloutState.DRAFT} | ACTIVE | ENDED == set(RolloutState)
    assert not ACTIVE & ENDED


def test_every_state_can_be_reached() -> None:
    assert set(TABLE.values()) | {RolloutState.DRAFT} == set(RolloutState)


@pytest.mark.parametrize("state", RolloutState)
@pytest.mark.parametrize("action", Action)
def test_action_outside_the_table(state: RolloutState, action: Action) -> None:
    if (state, action) in TABLE:
        assert advance(state, action) is TABLE[state, action]
    else:
        with pytest.raises(Conflict, match=state.value.replace("_", " ")):
            advance(state, action)


def test_diagram_misses_a_transition() -> None:
    assert diagram().count("-->") == len(TABLE) + 1
