"""Attacks of this folder as plain calls, so that they can be repeated against every mutant.

Takes the very test functions that pytest runs, with each of their parameters; builds the ``siege``
that some of them ask for. Decides what counts as an attack that got through: a failed test.
"""

from __future__ import annotations

import inspect
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

from tests.attacks.siege import Siege

Call = tuple[str, Callable[[], None]]
"""The name of an attack, and what carries it out."""

GOT_THROUGH = (Exception, pytest.fail.Exception)
"""What a failing test ends with: ``pytest.raises`` fails with an exception of its own."""


def calls(*modules: ModuleType) -> list[Call]:
    """Return every test function of these modules, once for each of its parameters."""
    return [
        (f"{module.__name__.rpartition('.')[2]}::{name}{list(arguments.values()) or ''}", call)
        for module in modules
        for name, function in vars(module).items()
        if name.startswith("test_") and isinstance(function, FunctionType)
        for arguments in _parameters(function)
        if (call := _call(function, arguments)) is not None
    ]


def killer(attacks: Iterable[Call]) -> str | None:
    """Return the first attack that gets through, None if all are withstood."""
    for name, call in attacks:
        try:
            call()
        except GOT_THROUGH:
            return name
    return None


def _parameters(function: FunctionType) -> Iterator[dict[str, Any]]:
    """The combinations of arguments that pytest.mark.parametrize asks for."""
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    choices = []
    for mark in marks:
        names, rows = mark.args[:2]
        split = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        choices.append([dict(zip(split, _row(row, len(split)), strict=True)) for row in rows])
    for combination in itertools.product(*choices):
        yield {name: value for part in combination for name, value in part.items()}


def _row(row: Any, width: int) -> tuple[Any, ...]:
    return (row,) if width == 1 else tuple(row)


def _call(function: FunctionType, arguments: dict[str, Any]) -> Callable[[], None] | None:
    """Return what runs it; None if it asks for what only pytest can give."""
    wanted = set(inspect.signature(function).parameters) - set(arguments)
    if wanted - {"siege"}:
        return None

    def run() -> None:
        if not wanted:
            function(**arguments)
            return
        folder = Path(tempfile.mkdtemp(prefix="siege-"))
        try:
            siege = Siege.begin(folder / "device")
            try:
                function(siege=siege, **arguments)
            finally:
                siege.fleet.close()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return run
