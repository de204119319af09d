"""Reads what ``--variant`` says: NAME:key=value,… as fields and files of an upload."""

import json
from pathlib import Path
from typing import Any

from fleet_server.command_line.output import CommandError

ADVICE = (
    "Write NAME:key=value,key=value with the keys machine (instruction set, may be there several "
    "times), label.NAME, memory_mib, recipe and file, for example "
    "pi4:machine=aarch64,label.hardware=rpi4,recipe=float16"
)


def read_variants(texts: list[str]) -> tuple[str, dict[str, Path]]:
    """Return the form's field ``variants``, and field → file of the models that variants bring.

    Raises:
        CommandError: for a text of another form, or a file that is not there.
    """
    files: dict[str, Path] = {}
    return json.dumps([_read(text, files) for text in texts]), files


def _read(text: str, files: dict[str, Path]) -> dict[str, Any]:
    name, colon, rest = text.partition(":")
    wanted: dict[str, Any] = {"name": name, "machines": [], "labels": {}}
    if not colon or not name:
        raise CommandError(f"--variant {text!r} names nothing.", ADVICE)
    for part in rest.split(","):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise CommandError(f"--variant {name}: {part!r} is not key=value.", ADVICE)
        if key == "machine":
            wanted["machines"].append(value)
        elif key.startswith("label."):
            wanted["labels"][key.removeprefix("label.")] = value
        elif key == "memory_mib" and value.isdecimal():
            wanted["memory_bytes"] = int(value) * 1024**2
        elif key == "recipe":
            wanted["recipe"] = value
        elif key == "file":
            path = Path(value)
            if not path.is_file():
                raise CommandError(f"--variant {name}: there is no file {value}.", ADVICE)
            field = f"variant-{len(files) + 1}"
            files[field] = path
            wanted["file"] = field
        else:
            raise CommandError(f"--variant {name}: {part!r} is not known.", ADVICE)
    return wanted
