"""Guards from requests that meet a connection which the server is just closing."""

from __future__ import annotations

from pathlib import Path

from fleet_server import serving
from fleet_server.app import create_app
from fleet_server.settings import Settings

PROXY_S = 60
"""How long nginx and others keep a connection to a server that is idle."""


def test_connection_that_ends_just_when_a_proxy_sends(tmp_path: Path) -> None:
    operators, _devices = serving.servers(create_app(Settings(data_dir=tmp_path)))
    assert operators.config.timeout_keep_alive > PROXY_S
