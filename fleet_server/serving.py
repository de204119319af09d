"""Runs the application on its sockets until it is told to stop.

Two listeners lead to one application: the operators' (plain HTTP, on loopback by default) and the
devices' (TLS, where a device shows its certificate). Decides how a port is taken, so that a taken
one is one sentence instead of a stack trace, what the application sees of a client's certificate,
and that SIGTERM and SIGINT end the server in order: requests first, then the parts, the broker
last.
"""

import asyncio
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from fleet_server import data_folder
from fleet_server.app import create_app
from fleet_server.errors import StartError
from fleet_server.settings import Settings

KEEP_ALIVE_S = 75
"""Longer than clients and proxies keep a connection that is idle: 5 and 60 seconds. Who closes
first must be the one who sends, or a request now and then meets a connection that just ends."""

Started = Callable[[Settings, str, str, bool], None]
"""Called with the final settings (ports that were 0 are known), the broker's URL and its kind, and
whether the root's keys lie on this disk."""


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn would raise the signal again before the application's parts are stopped.
        yield


class CertifiedProtocol(H11Protocol):
    """Puts the client's certificate into the scope, as ASGI's TLS extension has it.

    https://asgi.readthedocs.io/en/latest/specs/tls.html
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        shown = tls.getpeercert(binary_form=True) if tls is not None else None
        chain = [ssl.DER_cert_to_PEM_cert(shown)] if shown is not None else []
        app = self.app

        async def certified(scope: Any, receive: Any, send: Any) -> None:
            scope.setdefault("extensions", {})["tls"] = {"client_cert_chain": chain}
            await app(scope, receive, send)

        self.app = certified


def servers(app: FastAPI) -> tuple[uvicorn.Server, uvicorn.Server]:
    """Return who serves operators and who serves devices, once the application has started."""
    quiet: dict[str, Any] = {"lifespan": "off", "log_config": None, "access_log": False}
    operators = uvicorn.Config(
        app, timeout_graceful_shutdown=5, timeout_keep_alive=KEEP_ALIVE_S, **quiet
    )
    devices = uvicorn.Config(
        app,
        timeout_graceful_shutdown=5,
        http=CertifiedProtocol,
        ssl_context_factory=lambda _config, _default: app.state.authority.door(),
        **quiet,
    )
    return _Server(operators), _Server(devices)


def run(settings: Settings, started: Started) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        StartError: where an operator has to do something before it can start.
    """
    with listen(settings.host, settings.port, "port") as operators, _devices(settings) as devices:
        settings = replace(
            settings,
            port=operators.getsockname()[1],
            device_port=devices.getsockname()[1],
        )
        asyncio.run(_serve(settings, operators, devices, started))


async def _serve(
    settings: Settings, operators: socket.socket, devices: socket.socket, started: Started
) -> None:
    app = create_app(settings)
    loop = asyncio.get_running_loop()
    async with app.router.lifespan_context(app):
        data_folder.remember_port(settings.data_dir, settings.device_port, data_folder.DEVICES)
        both = servers(app)

        def end() -> None:
            # Devices that wait for a bench job would be waited for.
            app.state.desk.close()
            for server in both:
                server.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        state = app.state
        started(
            settings, state.device_broker_url, state.broker_kind, state.catalogue.holds_root_key
        )
        await asyncio.gather(
            *(
                server.serve(sockets=[listener])
                for server, listener in zip(both, (operators, devices), strict=True)
            )
        )


def _devices(settings: Settings) -> socket.socket:
    """Return the devices' listener; they keep its address, so a port that was free is kept.

    Raises:
        StartError: if it cannot be had, or if another server holds the data folder.
    """
    port = settings.device_port or data_folder.remembered_port(
        settings.data_dir, data_folder.DEVICES
    )
    # The other server has that port, too: what is wrong is the folder.
    with data_folder.held(settings.data_dir):
        return listen(settings.device_address, port, "device-port")


def listen(host: str, port: int, flag: str) -> socket.socket:
    """Return a socket that listens.

    Raises:
        StartError: if the port cannot be had; it names the flag that chooses another.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Listen at once: with SO_REUSEADDR two sockets may be bound, but only one may listen.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise StartError(
            "port_taken",
            f"Port {port} on {host} cannot be used: {error.strerror}.",
            f"Choose another by --{flag} (0 takes a free one), or end the program that has it.",
        ) from error
    listener.set_inheritable(False)
    return listener
