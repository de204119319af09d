"""Which broker a specification means, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fleet_server.broker import choice
from fleet_server.broker.choice import ExternalBroker, choose
from fleet_server.broker.errors import BrokerChoiceError, InsecureListenerError
from fleet_server.broker.listener import EmbeddedBroker
from fleet_server.broker.mosquitto import PrivateMosquitto
from fleet_server.broker.policy import AllowAll


def pick(spec: str, **options: Any) -> Any:
    return choose(spec, folder=Path("unused"), clock=lambda: 0, **options)


def test_newcomer_without_mosquitto_gets_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_mosquitto", lambda: None)
    assert isinstance(pick("auto"), EmbeddedBroker)


def test_installed_mosquitto_overlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_mosquitto", lambda: Path("mosquitto"))
    assert isinstance(pick("auto"), PrivateMosquitto)


def test_policy_forgotten_where_mosquitto_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_mosquitto", lambda: Path("mosquitto"))
    with pytest.raises(BrokerChoiceError):
        pick("auto", policy=AllowAll())
    with pytest.raises(BrokerChoiceError):
        pick("mosquitto", policy=AllowAll())


@pytest.mark.parametrize(
    ("spec", "url"),
    [
        ("mqtt://broker.example:1884", "mqtt://broker.example:1884"),
        ("mqtt://broker.example", "mqtt://broker.example:1883"),
        ("mqtts://broker.example/", "mqtts://broker.example:8883"),
        ("mqtt://[::1]:1883", "mqtt://[::1]:1883"),
    ],
)
def test_external_broker_misread(spec: str, url: str) -> None:
    assert pick(spec) == ExternalBroker(url)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "rabbit",
        "http://broker.example",
        "mqtt://",
        "mqtt://broker.example:port",
        "mqtt://broker.example:99999",
        "mqtt://user:secret@broker.example",
        "mqtt://broker.example/path",
        "mqtt://[::1",
    ],
)
def test_nonsense_accepted_as_broker(spec: str) -> None:
    with pytest.raises(BrokerChoiceError):
        pick(spec)


def test_open_broker_beyond_loopback() -> None:
    with pytest.raises(InsecureListenerError):
        pick("embedded", host="0.0.0.0")
    with pytest.raises(InsecureListenerError):
        pick("mosquitto", host="0.0.0.0")
