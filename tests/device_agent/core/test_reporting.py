"""Progress: it fits its message, is said until it was heard, and is not said for ever."""

from typing import Any

from msgspec.structs import replace

from device_agent.core import effects as do
from device_agent.core import events
from device_agent.core.reporting import LONGEST_REPEAT_MS
from device_agent.core.state import MODELS, ModelState
from device_agent.core.step import step
from fleet_contract import limits
from fleet_contract.errors import Reason
from fleet_contract.messages.presence import Seen, read_presence
from fleet_contract.messages.progress import Phase, Refusal, read_progress
from fleet_contract.trust.checks import Acceptance
from fleet_contract.trust.directive import ReleaseRef, Starts


def full(device: Any, letter: str) -> Any:
    """The state of a device with as many models as it may have and every text at its longest."""
    running = device.state.record.models["digits"]
    models = {}
    for number in range(MODELS):
        name = f"m{number:02}" + "x" * 60
        digests = [f"{number:02}" + digit * 62 for digit in "abc"]
        active, standby = (ReleaseRef("x" * 300, digest) for digest in digests[:2])
        models[name] = ModelState(
            model=name,
            directive=replace(
                running.directive,
                model=name,
                rollout="r" * 64,
                epoch=1 << 62,
                default=ReleaseRef("x", digests[2]),
            ),
            phase=Phase.FAILED,
            target=digests[2],
            active=active,
            standby=standby,
            reason=Reason.UNCONFIRMED_GENERATION,
            detail=letter * 300,
            changed_ms=1 << 62,
            held_off={digests[2]: 1 << 40},
        )
    refusals = [
        (n, Refusal(letter * 300, Reason.UNCONFIRMED_GENERATION, letter * 300, 1 << 62))
        for n in range(16)
    ]
    record = replace(device.state.record, models=models)
    live = replace(device.state.live, refusals=refusals, connected=False)
    return replace(device.state, record=record, live=live)


def said(device: Any, letter: str) -> Any:
    _, effects = step(full(device, letter), events.Connected(), device.now_ms)
    published = [effect for effect in effects if isinstance(effect, do.Publish)]
    assert all(len(effect.payload) <= limits.STATUS_BYTES for effect in published)
    return read_progress(published[-1].payload)


def test_progress_of_64_models_is_too_large(on_a: Any) -> None:
    progress = said(on_a, "x")
    assert len(progress.models) == MODELS
    assert progress.models[0].detail == "x" * 300


def test_details_in_a_wide_script_make_progress_too_large(on_a: Any) -> None:
    progress = said(on_a, "\U0001f600")
    assert len(progress.models) == MODELS
    assert progress.models[0].reason is Reason.UNCONFIRMED_GENERATION
    assert progress.models[0].detail == ""


def test_unheard_progress_keeps_a_server_down(on_a: Any) -> None:
    sent = len(on_a.progress)
    on_a.live(10 * LONGEST_REPEAT_MS)
    assert 10 <= len(on_a.progress) - sent <= 20
    on_a.acknowledge()
    sent = len(on_a.progress)
    on_a.live(10 * LONGEST_REPEAT_MS)
    assert len(on_a.progress) == sent


def test_clock_set_back_silences_progress(on_a: Any) -> None:
    on_a.now_ms -= 365 * 86_400_000
    on_a.direct(on_a.authority.directive())
    sent = len(on_a.progress)
    on_a.now_ms -= 86_400_000
    on_a.feed(events.Tick())
    on_a.live(60_000)
    assert len(on_a.progress) > sent


def test_canceled_start_is_told_at_every_event(on_a: Any, authority: Any) -> None:
    on_a.direct(authority.to_arm(ReleaseRef("x", "b" * 64), starts=Starts.CANCELED))
    assert on_a.is_in(Phase.CANCELED)
    on_a.acknowledge()
    sent = len(on_a.progress)
    record = on_a.state.record
    for _ in range(3):
        on_a.wait(1_000)
        on_a.acknowledge()
    assert (len(on_a.progress), on_a.state.record) == (sent, record)


def test_device_tells_the_highest_that_it_has_seen(on_a: Any) -> None:
    record = on_a.state.record
    acceptances = record.acceptances | {"elsewhere/digits": Acceptance(7, 1 << 50, "ab" * 32)}
    state = replace(on_a.state, record=replace(record, acceptances=acceptances))
    held = Seen(root=3, timestamp=9, snapshot=8, targets=12, families=["digits"])
    state, effects = step(state, events.Connected(held), on_a.now_ms)
    birth = next(item for item in effects if isinstance(item, do.Publish) and item.retain)
    expected = replace(held, generation=7, epoch=1 << 50)
    assert read_presence(birth.payload).seen == expected
    # Without a connection it is the will that speaks for the device.
    _, effects = step(state, events.Disconnected(), on_a.now_ms)
    will = next(item for item in effects if isinstance(item, do.Connect))
    assert read_presence(will.will_payload).seen == expected


def test_presence_of_a_device_that_has_seen_much_is_too_large(on_a: Any) -> None:
    names = [f"{number:03}" + "x" * 61 for number in range(limits.FAMILIES)]
    largest = limits.LARGEST_INTEGER
    state = full(on_a, "a")
    keyset = replace(state.record.keyset, release_floors=dict.fromkeys(names, largest))
    state = replace(state, record=replace(state.record, keyset=keyset))
    held = Seen(0, 0, largest, largest, largest, largest, names)
    _, effects = step(state, events.Connected(held), on_a.now_ms)
    birth = next(item for item in effects if isinstance(item, do.Publish) and item.retain)
    assert len(birth.payload) <= limits.STATUS_BYTES
    assert read_presence(birth.payload).seen.families == names
