"""``edgefleet audit``: what was done, whether the record of it is intact, and reports from it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from fleet_server.command_line.connection import Connection, connect
from fleet_server.command_line.output import AsJson, CommandError, print_table, say, show
from fleet_server.command_line.report_view import as_markdown

app = typer.Typer(no_args_is_help=True, help="The record of what was done.")
EXIT_BROKEN = 3
LINE_CHARACTERS = 4_000_000
CHECKPOINTS_BYTES = 256 * 1024**2


@app.command("list")
def list_entries(
    context: typer.Context,
    count: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    as_json: AsJson = False,
) -> None:
    """List what was done, the newest first."""
    found = connect(context).get("/v1/audit", count=count)["entries"]
    show(
        found,
        as_json,
        lambda: print_table(
            ("NUMBER", "TIME", "USER", "ACTION", "WHAT", "OUTCOME", "REASON"),
            (
                (
                    item["sequence"],
                    item["timestamp"],
                    item["user"],
                    item["action"],
                    item["resource_name"],
                    item["outcome"],
                    item["reason"],
                )
                for item in found
            ),
            empty="Nothing was done yet.",
        ),
    )


@app.command("export")
def export_records(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Gets records.jsonl and checkpoints.json.")],
    as_json: AsJson = False,
) -> None:
    """Write every record as a line of JSON, and the signed checkpoints beside them."""
    server = connect(context)
    server.post("/v1/audit/checkpoints")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        count = _write_records(server, folder / "records.jsonl")
        # Afterwards: each of them is about records that were written already, or a few later.
        signed = server.get("/v1/audit/checkpoints")
        signed["checkpoints"] = [
            item for item in signed["checkpoints"] if item["sequence"] <= count
        ]
        _replace(folder / "checkpoints.json", [json.dumps(signed, indent=2), "\n"])
    except OSError as error:
        raise CommandError(f"{folder} cannot be written: {error.strerror}.") from error
    done = {"records": count, "checkpoints": len(signed["checkpoints"]), "folder": str(folder)}
    show(
        done,
        as_json,
        lambda: say(
            f"{count} records. Check them anywhere by: edgefleet audit verify --folder {folder} "
            f"--key {next(iter(signed['keys'].values()), '')}"
        ),
    )


@app.command("verify")
def verify_chain(
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Option(help="An exported folder, checked without the server.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="With --folder: a public key that you believe, in hexadecimal."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find records that were altered, removed or moved. Exits with 3 if there are any."""
    if folder is None:
        found = connect(context).get("/v1/audit/verification")
    else:
        found = _verify_folder(folder, key or [])
    show(found, as_json, lambda: _print_verification(found))
    if not found["intact"]:
        raise typer.Exit(EXIT_BROKEN)


@app.command("report")
def report_release(
    context: typer.Context,
    model: str,
    version: str,
    output: Annotated[Path | None, typer.Option(help="Write it there.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the compliance report of a release: provenance, gates, approvals, exposure."""
    where = f"/v1/models/{quote(model, safe='')}/releases/{quote(version, safe='')}/report"
    found = connect(context).get(where)
    text = json.dumps(found, indent=2) + "\n" if as_json else as_markdown(found)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        _replace(output, [text])
    except OSError as error:
        raise CommandError(f"{output} cannot be written: {error.strerror}.") from error
    typer.echo(f"Written to {output}.", err=True)


def _write_records(server: Connection, path: Path) -> int:
    after = 0

    def pages() -> Iterator[str]:
        nonlocal after
        while page := server.text("/v1/audit/export", after=after):
            after += page.count("\n")
            yield page

    _replace(path, pages())
    return after


def _replace(path: Path, parts: Any) -> None:
    """Write a file so that it is there whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)


def _verify_folder(folder: Path, believed: list[str]) -> dict[str, Any]:
    # The server's code is not needed otherwise, and a command starts faster without it.
    from fleet_contract.trust.envelope import key_id
    from fleet_server.audit.schemas import VerificationShown
    from fleet_server.audit.verification import Checkpoint, verify_export

    if not believed:
        raise CommandError(
            "Which key do you believe? An export cannot say so about itself.",
            "Give it by --key; edgefleet audit export prints it, write it down elsewhere.",
        )
    try:
        keys = {key_id(bytes.fromhex(text)): bytes.fromhex(text) for text in believed}
        path = folder / "checkpoints.json"
        if path.stat().st_size > CHECKPOINTS_BYTES:
            raise CommandError(f"{path} is too large.")
        signed = json.loads(path.read_text(encoding="utf-8"))
        checkpoints = [Checkpoint(**item) for item in signed["checkpoints"]]
        with (folder / "records.jsonl").open(encoding="utf-8", errors="replace") as file:
            found = verify_export(
                iter(lambda: file.readline(LINE_CHARACTERS), ""),
                checkpoints,
                keys,
                fleet=signed["fleet"],
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"{folder} is no export: {type(error).__name__}.",
            "Make one by: edgefleet audit export FOLDER",
        ) from error
    return VerificationShown.of(found).model_dump()


def _print_verification(found: dict[str, Any]) -> None:
    for item in found["findings"]:
        say(f"record {item['sequence']}: {item['problem']}")
    unsigned = found["records"] - found["signed_sequence"]
    verdict = "intact" if found["intact"] else "NOT INTACT"
    say(
        f"{found['records']} records, {verdict}; a signed checkpoint vouches for all but the last "
        f"{unsigned}."
    )
