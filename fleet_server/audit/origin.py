"""Where a change came from: which program called, by which command, under which change ticket.

The edge of a request sets it once, and every record made during the request carries it, so that
no endpoint can forget to pass it on. What has no origin was decided by the server itself.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

ORIGIN: ContextVar["Origin | None"] = ContextVar("origin", default=None)


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of a call before it is answered.

    ``agent`` is the calling program as it names itself, ``command`` the call, ``elapsed_ms`` tells
    how long it has taken so far.
    """

    agent: str
    command: str
    change_ticket: str
    elapsed_ms: Callable[[], int]
