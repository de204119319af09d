"""Options of ``edgefleet model push`` that say what the model's file does not."""

import json
from typing import Annotated

import msgspec
import typer

from fleet_server.command_line.output import CommandError
from fleet_server.releases import interface

Kind = Annotated[
    str,
    typer.Option(metavar="KIND", help="How to read the output: logits, probabilities or values."),
]
Classes = Annotated[str, typer.Option(metavar="A,B,...", help="Names of the classes, in order.")]
Agreement = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Least share of golden rows that must agree (0.99); less needs force-gate.",
    ),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=SIZES",
        help="Of an input or output, where the file leaves it open or the batch is not its first "
        "axis: n for the batch, as in state=2,n,128.",
    ),
]
Constants = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=NUMBER", help="An input that is the same for every row."),
]
States = Annotated[
    list[str] | None,
    typer.Option(
        metavar="INPUT=OUTPUT", help="The output that is this input's value at the next step."
    ),
]
SizeBudget = Annotated[
    str,
    typer.Option(metavar="BYTES", help="Nothing larger ships: bytes, or 300KiB, or 1.5MiB."),
]
Numpy = Annotated[
    str,
    typer.Option(
        metavar="VERSION",
        help="Only for devices with this numpy or a newer one, such as 2.0: what your application "
        "prepares inputs with.",
    ),
]
BenchLabels = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LABEL=VALUE",
        help="Time the main artifact on a bench device with this label, such as hardware=pi4; by "
        "default on one if all that are there have the same hardware label.",
    ),
]


def class_names(text: str) -> list[str]:
    """Return the names in ``A,B,...``, none of an empty text."""
    return [word.strip() for word in text.split(",")] if text else []


def fields(
    shapes: list[str] | None,
    constants: list[str] | None,
    states: list[str] | None,
    size_budget: str,
    bench: list[str] | None = None,
    numpy: str = "",
) -> dict[str, str]:
    """Return the fields of the upload that these options make.

    Raises:
        CommandError: if one is not of its form.
    """
    found = {"size_budget_bytes": str(_bytes(size_budget))} if size_budget else {}
    if numpy:
        found["numpy"] = numpy
    if bench:
        labels = dict(word.partition("=")[::2] for word in bench)
        if not all(labels) or not all(labels.values()):
            raise CommandError("--bench is not a label.", "Write it as KEY=VALUE: hardware=pi4.")
        found["bench"] = json.dumps(labels)
    if not shapes and not constants and not states:
        return found
    try:
        said = interface.parse(shapes or [], constants or [], states or [])
    except ValueError as error:
        raise CommandError(
            f"An option is not of its form: {error}.",
            "For example --shape state=2,n,128 --constant sr=16000 --state state=stateN.",
        ) from error
    return found | {"interface": json.dumps(msgspec.to_builtins(said))}


def _bytes(text: str) -> int:
    for unit, factor in (("KiB", 1024), ("MiB", 1024**2), ("", 1)):
        number = text.removesuffix(unit).strip()
        if text.endswith(unit) and number.replace(".", "", 1).isdecimal():
            return int(float(number) * factor)
    raise CommandError(f"{text!r} is no size.", "Write for example 1500000, 300KiB or 1.5MiB.")
