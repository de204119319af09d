"""The server's log: one JSON object a line, with the correlation id, and without secrets.

Decides the form of a line and where it goes. What is worth a line is decided where it happens.
"""

import logging
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import structlog

from fleet_server.errors import StartError

SECRET_WORDS = ("password", "secret", "token", "authorization", "private_key", "credential")
HIDDEN = "(hidden)"


def configure(level: str, log_file: str) -> None:
    """Send the program's log, and its libraries', to ``log_file`` or standard error.

    Raises:
        StartError: if the file cannot be opened.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        hide_secrets,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = _handler(log_file)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
    # Each migration step and each request would be a line; the latter are counted in /metrics.
    # The repository's library says of every signature that it is not there yet.
    for chatty in ("alembic", "httpx", "uvicorn.access", "tuf"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def hide_secrets(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace the values of fields that are named like secrets."""
    for key in event:
        if any(word in key.lower() for word in SECRET_WORDS):
            event[key] = HIDDEN
    return event


def _handler(log_file: str) -> logging.Handler:
    if not log_file:
        return logging.StreamHandler(sys.stderr)
    try:
        return logging.FileHandler(Path(log_file).expanduser(), encoding="utf-8")
    except OSError as error:
        raise StartError(
            "log_file",
            f"The log file {log_file} cannot be written: {error.strerror}.",
            "Name a file in a folder that the server may write.",
        ) from error
