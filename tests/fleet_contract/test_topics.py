"""Guards that a topic names exactly one thing, and that nothing else passes for one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_contract import names, topics
from fleet_contract.errors import InvalidName
from fleet_contract.topics import DeviceChannel, DeviceTopic

identities = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}[a-z0-9]", fullmatch=True)
models = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}[a-z0-9]", fullmatch=True)
BAD_NAMES = [
    *("", "a", "-a", "a-", "A1", "a/b", "a+", "a#", "..", "a b", "a\n", "a1\n", "a\0", "ä1"),
    *("a" * 64, "+", "#", "$sys", "a_b", "१२"),
]


@given(fleet=identities, cohort=identities, model=models)
def test_directive_round_trip(fleet: str, cohort: str, model: str) -> None:
    topic = topics.directive(fleet, cohort, model)
    assert topics.read_directive(topic) == (fleet, cohort, model)
    with pytest.raises(InvalidName):
        topics.read_device(topic)


@given(
    fleet=identities,
    device=identities,
    model=models,
    channel=st.sampled_from([c for c in DeviceChannel if c is not DeviceChannel.REPORT]),
)
def test_device_round_trip(fleet: str, device: str, model: str, channel: DeviceChannel) -> None:
    topic = topics.device(fleet, device, channel)
    assert topics.read_device(topic) == DeviceTopic(fleet, device, channel, "")
    report = topics.report(fleet, device, model)
    assert topics.read_device(report) == DeviceTopic(fleet, device, DeviceChannel.REPORT, model)
    with pytest.raises(InvalidName):
        topics.read_directive(topic)


levels = st.sampled_from(
    [
        *("fleet", "v1", "v2", "home", "cohort", "device", "d1", "stop", "assignment", "ack"),
        *("presence", "progress", "report", "digits", "", "+", "#", "..", "A", "d1\n", "\0"),
    ]
)


@given(parts=st.lists(levels, max_size=9) | st.text(max_size=40).map(lambda text: text.split("/")))
def test_any_text_is_read_as_it_would_be_written_or_refused(parts: list[str]) -> None:
    topic = "/".join(parts)
    try:
        read = topics.read_device(topic)
    except InvalidName:
        pass
    else:
        if read.channel is DeviceChannel.REPORT:
            assert topics.report(read.fleet, read.device, read.model) == topic
        else:
            assert topics.device(read.fleet, read.device, read.channel) == topic
    try:
        fleet, cohort, model = topics.read_directive(topic)
    except InvalidName:
        pass
    else:
        assert topics.directive(fleet, cohort, model) == topic


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize(
    "write",
    [
        topics.stop,
        topics.root,
        topics.control_filters,
        lambda name: topics.directive("home", name, "digits"),
        lambda name: topics.directives("home", name),
        lambda name: topics.device("home", name, DeviceChannel.ACK),
        lambda name: topics.device_filter(name, DeviceChannel.ACK),
        lambda name: topics.report(name, "d1", "digits"),
    ],
    ids=range(8),
)
def test_names_that_would_break_out_of_a_topic(write: Callable[[str], object], name: str) -> None:
    with pytest.raises(InvalidName):
        write(name)


def test_control_filters_match_every_retained_control_topic() -> None:
    control = [
        topics.stop("home"),
        topics.root("home"),
        topics.directive("home", "lab", "digits"),
        topics.device("home", "d1", DeviceChannel.ASSIGNMENT),
    ]
    others = [
        topics.device("home", "d1", DeviceChannel.PRESENCE),
        topics.report("home", "d1", "digits"),
        topics.stop("work"),
    ]
    filters = topics.control_filters("home")
    assert all(any(_matches(name, topic) for name in filters) for topic in control)
    assert not any(_matches(name, topic) for name in filters for topic in others)


def _matches(name: str, topic: str) -> bool:
    levels, wanted = topic.split("/"), name.split("/")
    return len(levels) == len(wanted) and all(
        want in ("+", level) for want, level in zip(wanted, levels, strict=True)
    )


@pytest.mark.parametrize(
    ("text", "normal"), [("1.2.3", "1.2.3"), ("v0.0.1-rc.1", "0.0.1-rc.1"), ("v17", "17")]
)
def test_versions(text: str, normal: str) -> None:
    assert names.check_version(text) == normal


@pytest.mark.parametrize(
    "text",
    ["", "latest", "0", "01", "1.2", "01.2.3", "1.2.3\n", "1.2.3+x", "vv1.2.3", "१.२.३", "1.2.3-"],
)
def test_other_texts_are_no_versions(text: str) -> None:
    with pytest.raises(InvalidName):
        names.check_version(text)


@pytest.mark.parametrize("name", [*(name for name in BAD_NAMES if name not in ("a_b", "a" * 64))])
def test_other_texts_are_no_models(name: str) -> None:
    with pytest.raises(InvalidName):
        names.check_model(name)
