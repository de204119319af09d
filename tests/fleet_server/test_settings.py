"""Guards from settings that are undocumented, misread, or out of bounds."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from fleet_server.errors import StartError
from fleet_server.settings import PREFIX, Settings, read_settings

COMMAND_LINE = {f"{PREFIX}{name}" for name in ("URL", "TOKEN", "CHANGE_TICKET", "HSM_PIN")}
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"


def test_setting_without_documentation() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    missing = [
        setting.name
        for setting in fields(Settings)
        if f"`{PREFIX}{setting.name.upper()}`" not in text
    ]
    assert missing == []


def test_documented_setting_that_does_not_exist() -> None:
    names = {f"{PREFIX}{setting.name.upper()}" for setting in fields(Settings)}
    rows = [
        line.split("`")[1]
        for line in REFERENCE.read_text(encoding="utf-8").splitlines()
        if line.startswith(f"| `{PREFIX}")
    ]
    assert set(rows) - names - COMMAND_LINE == set()


def test_documented_default_that_is_another() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    for setting in fields(Settings):
        if setting.name != "data_dir":
            default = "empty" if setting.default == "" else f"`{setting.default}`"
            row = f"| `{PREFIX}{setting.name.upper()}` | {default} |"
            assert row in text, row


def test_flag_that_loses_to_the_environment() -> None:
    settings = read_settings({"EDGEFLEET_PORT": "1", "EDGEFLEET_FLEET": "shop"}, port=2, fleet=None)
    assert (settings.port, settings.fleet) == (2, "shop")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("FLEET", "../home"),
        ("ENVIRONMENT", "prod"),
        ("LOG_LEVEL", "loud"),
        ("INGEST_BATCH", "0"),
        ("REQUEST_LIMIT_BYTES", "99999999999"),
        ("PUBLIC_URL", "ftp://host"),
    ],
)
def test_setting_that_cannot_be(name: str, value: str) -> None:
    with pytest.raises(StartError) as refused:
        read_settings({PREFIX + name: value})
    assert PREFIX + name in refused.value.advice


def test_flag_that_nobody_reads() -> None:
    with pytest.raises(TypeError):
        read_settings({}, prot=1)


def test_url_with_an_address_of_six_bytes() -> None:
    assert Settings(host="::1", port=1).url == "http://[::1]:1"
    assert Settings(public_url="https://fleet.example/").url == "https://fleet.example"
