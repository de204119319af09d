"""What the command line says of a release: a file of metadata, and options for the common ones.

Decides how the two meet: an option replaces what the file says, tags come together. Whether it is
of its form is decided by the server, which says so.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_server.command_line.output import CommandError, say

METADATA_BYTES = 64 * 1024
"""The server's own bound of this field."""

MetadataFile = Annotated[
    Path | None,
    typer.Option(
        "--metadata",
        metavar="JSON",
        help="What there is to say of it (hyperparameters, metrics, datasets, …); default: "
        "metadata.json, if a folder is pushed that has one.",
        exists=True,
        dir_okay=False,
    ),
]
Tags = Annotated[
    list[str] | None, typer.Option("--tag", metavar="TAG", help="To find it by; repeatable.")
]
Licence = Annotated[
    str, typer.Option(metavar="SPDX", help="Its licence, as SPDX names it: Apache-2.0.")
]
Owner = Annotated[str, typer.Option(metavar="NAME", help="Whom to ask about it.")]
Commit = Annotated[
    str, typer.Option("--commit", metavar="SHA", help="The git commit that it was trained from.")
]
DatasetHash = Annotated[str, typer.Option(metavar="HASH", help="Of the data it was trained on.")]
EnvironmentLock = Annotated[
    str, typer.Option(metavar="SHA256", help="Of the lock file of the training's environment.")
]


def beside(folder: Path) -> Path | None:
    """Return the file of metadata in the folder of a release, None if there is none."""
    file = folder / "metadata.json"
    return file if file.is_file() else None


def gather(
    file: Path | None,
    tags: list[str] | None,
    found: Mapping[str, Any] | None = None,
    /,
    **options: Any,
) -> dict[str, Any]:
    """Return the metadata of a push.

    Args:
        file: a JSON object, or None.
        tags: to add to those of the file.
        found: what was found out elsewhere, for example in a registry; the file goes over it.
        options: by the names of the metadata; empty ones say nothing, others go over the file.

    Raises:
        CommandError: if the file is no JSON object.
    """
    said = {**(found or {}), **(_read(file) if file is not None else {})}
    said |= {name: value for name, value in options.items() if value}
    if tags:
        before = said.get("tags")
        said["tags"] = [*(before if isinstance(before, list) else []), *tags]
    return said


def describe_metadata(metadata: Mapping[str, Any]) -> None:
    """Print what was said of a release, a line each; names of classes are in its manifest."""
    for name, value in metadata.items():
        if name != "classes":
            say(f"  {name.removesuffix('_ms').replace('_', ' '):<10} {_line(name, value)}")


def _line(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return f"{value / 1_000:g} s" if name.endswith("_ms") else str(value)


def _read(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        data = opened.read(METADATA_BYTES + 1)
    if len(data) > METADATA_BYTES:
        raise CommandError(f"{file} is larger than {METADATA_BYTES // 1024} KiB.")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{file} is no JSON: {str(error)[:200]}.") from error
    if not isinstance(found, dict):
        raise CommandError(
            f"{file} holds no JSON object.", 'Write for example {"licence": "Apache-2.0"}.'
        )
    return found
