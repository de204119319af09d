"""What an endpoint may ask the running server for: as arguments, not as globals.

app.py puts these into ``app.state``; domains declare them by the aliases below. What a domain
itself provides (the keyring, who is asking) is declared in that domain.
"""

from collections.abc import Callable
from typing import Annotated, cast

from fastapi import Depends, Request

from fleet_server.clock import Clock
from fleet_server.database import Database
from fleet_server.settings import Settings


def _database(request: Request) -> Database:
    return cast(Database, request.app.state.database)


def _clock(request: Request) -> Clock:
    return cast(Clock, request.app.state.clock)


def _settings(request: Request) -> Settings:
    return cast(Settings, request.app.state.settings)


def _wake(request: Request) -> Callable[[], None]:
    return cast(Callable[[], None], request.app.state.wake_publisher)


def _correlation_id(request: Request) -> str:
    return cast(str, request.state.correlation_id)


UsedDatabase = Annotated[Database, Depends(_database)]
UsedClock = Annotated[Clock, Depends(_clock)]
UsedSettings = Annotated[Settings, Depends(_settings)]
WakePublisher = Annotated[Callable[[], None], Depends(_wake)]
"""To be called after the transaction that wrote control messages."""
CorrelationId = Annotated[str, Depends(_correlation_id)]
