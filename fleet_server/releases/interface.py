"""What a pusher says about a model's inputs and outputs where the file does not.

Decides the words only; what they do to a model is in :mod:`fleet_server.releases.specialisation`.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

BATCH = "n"
"""Stands for the batch in a shape."""

TensorName = Annotated[str, Meta(min_length=1, max_length=200)]
Size = Annotated[int, Meta(ge=1, le=1 << 24)] | Literal["n"]
Shape = Annotated[list[Size], Meta(min_length=1, max_length=8)]
Constant = bool | int | float


class Interface(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shapes, constants and states of a model, each by a tensor's name.

    Attributes:
        shapes: sizes in the order in which the file has them, ``"n"`` once, where the batch is.
        constants: value of an input that is the same for every row; it becomes a part of the model.
        states: input → the output that is its value at the next step.
    """

    shapes: Annotated[dict[TensorName, Shape], Meta(max_length=128)] = {}
    constants: Annotated[dict[TensorName, Constant], Meta(max_length=64)] = {}
    states: Annotated[dict[TensorName, TensorName], Meta(max_length=64)] = {}


def parse(shapes: Sequence[str], constants: Sequence[str], states: Sequence[str]) -> Interface:
    """Read ``state=2,n,128``, ``sr=16000`` and ``state=stateN``.

    Raises:
        ValueError: naming the first that is not of its form.
    """
    found: dict[str, dict[str, object]] = {"shapes": {}, "constants": {}, "states": {}}
    for text in shapes:
        name, value = _pair(text, "state=2,n,128")
        sizes = [part.strip() for part in value.split(",")]
        found["shapes"][name] = [BATCH if part == BATCH else _number(part, text) for part in sizes]
    for text in constants:
        name, value = _pair(text, "sr=16000")
        found["constants"][name] = _number(value, text)
    for text in states:
        name, value = _pair(text, "state=stateN")
        found["states"][name] = value
    try:
        return msgspec.convert(found, Interface)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


def _pair(text: str, example: str) -> tuple[str, str]:
    name, sign, value = text.rpartition("=")
    if not sign or not name or not value:
        raise ValueError(f"{text!r} is not like {example}")
    return name.strip(), value.strip()


def _number(text: str, whole: str) -> object:
    try:
        return msgspec.json.decode(text, type=Constant)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{text!r} in {whole!r} is no number") from error
