"""The errors that domains raise: what is wrong, and what to do about it.

They know nothing of HTTP; :mod:`fleet_server.problem` decides which status each becomes.
"""


class DomainError(Exception):
    """Root of everything that a domain refuses.

    Attributes:
        code: machine-readable, in snake case, stable across versions.
        detail: one sentence for a person; never holds a secret.
        advice: what to do next; may be empty.
    """

    def __init__(self, code: str, detail: str, advice: str = "") -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.advice = advice


class Invalid(DomainError):
    """The request cannot mean anything: a bad name, a value out of range."""


class NotFound(DomainError):
    """What the request is about does not exist."""


class Conflict(DomainError):
    """The request is well formed, and the present state forbids it."""


class Unauthorized(DomainError):
    """Nobody known asked: no credentials, or wrong ones."""


class Forbidden(DomainError):
    """Somebody known asked for what is not theirs."""


class TooManyAttempts(DomainError):
    """Somebody failed to say who they are, too often in too short a time."""


class TooLarge(DomainError):
    """More bytes than this request may have."""


class Full(DomainError):
    """The disk has no room for what was sent."""


class Unavailable(DomainError):
    """The server cannot do it now and may be able to in a moment."""


class StartError(DomainError):
    """The server cannot start: a setting, a folder, a port, a key or the database."""
