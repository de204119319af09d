"""``edgefleet model provenance``: what a release was made of, by its signed statement."""

import hashlib
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from fleet_contract.errors import Refused
from fleet_server.command_line.connection import connect
from fleet_server.command_line.output import AsJson, CommandError, say, show
from fleet_server.provenance import statement
from fleet_server.provenance.statement import Statement

SIGNATURES = {
    "believed": "by a key that signs for this fleet",
    "former": "by a key that signs no more; its digest is the one written down at staging",
    "wrong": "not valid",
}


def show_provenance(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MODEL")],
    version: Annotated[str, typer.Argument(metavar="VERSION")],
    file: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A file that it has to name, of what went in or came out; may be repeated.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the signed statement (DSSE) here."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify and print what a release was made of: the exit code is 1 if anything is wrong."""
    path = f"/v1/models/{quote(name, safe='')}/releases/{quote(version, safe='')}/provenance"
    answer = connect(context).get(path)
    sealed = answer["envelope"].encode()
    findings = list(answer["findings"])
    if hashlib.sha256(sealed).hexdigest() != answer["digest"]:
        findings.append("the statement is not the one that was written down")
    try:
        stated = _read(sealed, answer)
    except Refused as refused:
        raise CommandError(f"The statement cannot be believed: {refused.detail}.") from refused
    findings += _missing(stated, file or [])
    if output is not None:
        output.write_bytes(sealed)
    shown = {**answer, "findings": findings}
    show(shown, as_json, lambda: _describe(name, version, stated, shown))
    if findings:
        raise typer.Exit(1)


def _read(sealed: bytes, answer: Any) -> Statement:
    if answer["signature"] == "former":
        return statement.read_unproven(sealed)
    keys = {keyid: bytes.fromhex(key) for keyid, key in answer["keys"].items()}
    return statement.open_sealed(sealed, keys)


def _missing(stated: Statement, files: list[Path]) -> list[str]:
    inputs = stated.predicate.build_definition.resolved_dependencies
    named = {item.digest.sha256 for item in [*inputs, *stated.subject]}
    found = []
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest not in named:
            found.append(f"{path} ({digest[:12]}) is nothing that it names")
    return found


def _describe(name: str, version: str, stated: Statement, answer: Any) -> None:
    build, run = stated.predicate.build_definition, stated.predicate.run_details
    say(f"{name} {version}  {'wrong' if answer['findings'] else 'verified'}")
    say(f"  signed     {SIGNATURES[answer['signature']]}")
    say(f"  made by    {run.builder.id}, run {run.metadata.invocation_id}")
    say(f"  asked for  {run.metadata.started_on}")
    say(f"  tools      {', '.join(f'{k} {v}' for k, v in sorted(run.builder.version.items()))}")
    for item in build.resolved_dependencies:
        say(f"  from       {item.digest.sha256}  {item.name}")
    for item in stated.subject:
        say(f"  made       {item.digest.sha256}  {item.name.split('/', 1)[0]}")
    for finding in answer["findings"]:
        say(f"  WRONG      {finding}")
