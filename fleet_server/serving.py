"""Runs the application on a socket until it is told to stop.

Decides how a port is taken, so that a taken one is one sentence instead of a stack trace, and that
SIGTERM and SIGINT end the server in order: requests first, then the parts, the broker last.
"""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import uvicorn

from fleet_server.app import create_app
from fleet_server.errors import StartError
from fleet_server.settings import Settings

Started = Callable[[Settings, str, str], None]
"""Called with the final settings (a port that was 0 is known), the broker's URL and its kind."""


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn would raise the signal again before the application's parts are stopped.
        yield


def run(settings: Settings, started: Started) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        StartError: where an operator has to do something before it can start.
    """
    with _listen(settings) as listener:
        port = listener.getsockname()[1]
        asyncio.run(_serve(replace(settings, port=port), listener, started))


async def _serve(settings: Settings, listener: socket.socket, started: Started) -> None:
    app = create_app(settings)
    config = uvicorn.Config(
        app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=5
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()

    def end() -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    async with app.router.lifespan_context(app):
        started(settings, app.state.broker_url, app.state.broker_kind)
        await server.serve(sockets=[listener])


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        # Listen at once: with SO_REUSEADDR two sockets may be bound, but only one may listen.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise StartError(
            "port_taken",
            f"Port {settings.port} on {settings.host} cannot be used: {error.strerror}.",
            "Choose another by --port (0 takes a free one), or end the program that has it.",
        ) from error
    listener.set_inheritable(False)
    return listener
