"""``edgefleet trust``: the ceremonies, from a fleet's first keys to a lost one.

Each ends with the next step of the runbook (docs/operating/trust.md). Keys that are not on the
server are used here, where the person is; the server gets public keys and signatures.
"""

import base64
import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from fleet_server.clock import SystemClock
from fleet_server.command_line.after_restore import after_restore
from fleet_server.command_line.authorities import (
    PATH,
    rotate_broker,
    rotate_device_ca,
    tell_authorities,
)
from fleet_server.command_line.connection import Connection, Target, connect
from fleet_server.command_line.output import (
    AsJson,
    CommandError,
    print_table,
    say,
    sentence,
    show,
)
from fleet_server.command_line.signing import sign_pending

app = typer.Typer(no_args_is_help=True, help="Whose signatures the fleet believes.")
rotate = typer.Typer(no_args_is_help=True, help="Give a role other keys.")
app.add_typer(rotate, name="rotate")
rotate.command("device-ca")(rotate_device_ca)
rotate.command("broker")(rotate_broker)
app.command("after-restore")(after_restore)

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
PENDING = "/v1/trust/pending"
SIGN = "Next: whoever holds a key that is asked for: edgefleet trust sign --keys DIR"
STATUS = "Next: see that all is well: edgefleet trust status"

Offline = Annotated[
    Path | None,
    typer.Option(
        "--offline",
        metavar="DIR",
        help="Make the keys in this folder, on a medium that leaves this machine.",
        file_okay=False,
    ),
]
Count = Annotated[int, typer.Option("--keys", help="How many keys.", min=1, max=16)]
Threshold = Annotated[int, typer.Option(help="How many of them have to sign.", min=1, max=16)]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Lost = Annotated[bool, typer.Option("--lost", help="The old key is in other hands.")]


@app.command("init")
def initialise(
    context: typer.Context,
    folder: Annotated[
        Path,
        typer.Option(
            "--offline", metavar="DIR", help="Where root's and targets' keys go.", file_okay=False
        ),
    ],
    keys: Count = 3,
    threshold: Threshold = 2,
    fleet: Annotated[str | None, typer.Option(metavar="NAME", help="The fleet (home).")] = None,
    families_offline: Annotated[
        bool,
        typer.Option("--families-offline", help="Every family of models brings its own key."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a fleet's trust before its server starts for the first time."""
    # Imported here: commands that only ask the server need none of its trust.
    from fleet_server.settings import read_settings
    from fleet_server.trust.founding import found

    target = context.find_root().obj
    assert isinstance(target, Target)
    clock = SystemClock()
    made = found(
        target.data_dir,
        folder,
        fleet=read_settings(os.environ, data_dir=target.data_dir, fleet=fleet).fleet,
        keys=keys,
        threshold=threshold,
        families_offline=families_offline,
        random_bytes=clock.random_bytes,
        now_ms=clock.now_ms(),
    )

    def tell() -> None:
        say(f"Root and targets: {threshold} of {keys} keys each, in {folder}.")
        say(f"Root's SHA-256, which enrolment tokens carry: {made.root_digest}")
        say(f"Next: give each holder one of {', '.join(made.files['root'])}")
        say(f"and one of {', '.join(made.files['targets'])}, keep a copy apart,")
        say("and remove the folder from this machine. Then start: edgefleet server")

    show({"root": made.root_digest, "keys": made.keys}, as_json, tell)


@app.command("status")
def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show roles, thresholds, keys, what expires, what waits, and the next step."""
    connection = connect(context)
    found = connection.get("/v1/trust/status")
    found["certificates"] = connection.get(PATH)
    now_ms = SystemClock().now_ms()

    def tell() -> None:
        rows = [
            (
                item["role"],
                item["version"],
                _left(item["expires_ms"] - now_ms),
                f"{item['threshold']} of {len(item['keys'])}",
                " ".join(
                    f"{key['keyid'][:12]} ({'here' if key['here'] else 'elsewhere'})"
                    for key in item["keys"]
                ),
            )
            for item in found["roles"]
        ]
        print_table(("ROLE", "VERSION", "EXPIRES IN", "SIGN", "KEYS"), rows, empty="No roles.")
        directors = " then ".join(key[:12] for key in found["directors"])
        say(f"Keyset: generation {found['generation']}, directors {directors}")
        for model, floor in found["release_floors"].items():
            say(f"Revoked: releases of {model} with a counter below {floor}")
        tell_authorities(found["certificates"])
        for line in found["pending"]:
            say(f"Waits: {line}")
        for line in found["warnings"]:
            say(f"Warning: {line}")
        say(f"Next: {found['next_step']}")

    show(found, as_json, tell)


@app.command("sign")
def sign(
    context: typer.Context,
    keys: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder of your keys.", exists=True, file_okay=False),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="URI", help="A key of securesystemslib: hsm:, awskms:, gcpkms:, …"),
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Show what waits for signatures, ask, and sign it with your keys.

    The fleet's newest root is kept beside them.
    """
    from fleet_server.trust import offline

    if keys is None and not key:
        raise CommandError("There is nothing to sign with.", "Give --keys DIR or --key URI.")
    here = offline.find_keys(keys) if keys is not None else []
    connection = connect(context)
    outcomes = sign_pending(connection, PENDING, here, key or [], yes=yes)
    if keys is not None and any(item["committed"] for item in outcomes):
        _keep_root(connection, keys)
    show(outcomes, as_json, lambda: _tell_signed(outcomes))


@rotate.command("snapshot")
def rotate_snapshot(context: typer.Context, as_json: AsJson = False) -> None:
    """Give snapshot a new key, made on the server; the next root says so."""
    _rotate(context, {"role": "snapshot"}, as_json, STATUS)


@rotate.command("timestamp")
def rotate_timestamp(context: typer.Context, as_json: AsJson = False) -> None:
    """Give timestamp a new key, made on the server; the next root says so."""
    _rotate(context, {"role": "timestamp"}, as_json, STATUS)


@rotate.command("director")
def rotate_director(context: typer.Context, lost: Lost = False, as_json: AsJson = False) -> None:
    """Let the next director sign what devices should do.

    With --lost both directors are new, and nothing that the old ones signed is worth anything.
    """
    after = "Next: see that every device follows: edgefleet device list; edgefleet trust status"
    _rotate(context, {"role": "director", "lost": lost}, as_json, after)


@rotate.command("root")
def rotate_root(
    context: typer.Context,
    folder: Offline = None,
    keys: Count = 3,
    threshold: Threshold = 2,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Give the root other keys; old and new ones have to sign.

    Without --offline the server makes one key itself, which is for trying out.
    """
    _rotate_top(context, "root", folder, keys, threshold, yes=yes, as_json=as_json)


@rotate.command("targets")
def rotate_targets(
    context: typer.Context,
    folder: Offline = None,
    keys: Count = 3,
    threshold: Threshold = 2,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Give targets other keys; the root has to sign, and the new keys.

    Without --offline the server makes one key itself, which is for trying out.
    """
    _rotate_top(context, "targets", folder, keys, threshold, yes=yes, as_json=as_json)


@rotate.command("family")
def rotate_family(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Which model.")],
    public: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="The team's public key in PEM.", exists=True),
    ] = None,
    threshold: Threshold = 1,
    lost: Lost = False,
    as_json: AsJson = False,
) -> None:
    """Delegate a model to another key; its releases are vouched for anew, a thief's are not.

    Without --public the server makes the key.
    """
    from fleet_server.trust import offline

    given = [offline.read_public(path) for path in public or []]
    body = {"keys": _shown(given), "threshold": threshold}
    done = connect(context).post(f"/v1/models/{quote(model, safe='')}/key", body)
    after = STATUS
    if lost:
        after = (
            "Next: look for releases that the team did not push: edgefleet model list "
            f"{model}; take them back: edgefleet trust revoke-release {model} VERSION --reason …"
        )
    _tell_rotated(done, as_json, after)


@app.command("publish-root")
def publish_root(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Root N+1.", exists=True, dir_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Publish a root that was made and signed elsewhere: it is checked against the present one.

    After a restore: bring the roots that the backup does not know, one after the other. Where they
    name keys that were lost with the server, a root with new ones follows, and waits to be signed.
    """
    body = {"root": base64.b64encode(file.read_bytes()).decode()}
    done = connect(context).post("/v1/trust/roots", body)
    _tell_rotated(done, as_json, STATUS)


@app.command("revoke-release")
def revoke_release(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Of which model.")],
    version: Annotated[str, typer.Argument(help="Which release.")],
    reason: Annotated[str, typer.Option(help="Why, for the audit.")],
    with_older: Annotated[
        bool, typer.Option("--with-older", help="Older releases of the model fall with it.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Let no device go to a release any more, not even back to it; what runs goes on running."""
    connection = connect(context)
    if not yes:
        older = " and every older release of it" if with_older else ""
        typer.confirm(f"Revoke {model} {version}{older}, for ever?", abort=True, err=True)
    path = f"/v1/models/{quote(model, safe='')}/releases/{quote(version, safe='')}/revoke"
    done = connection.post(path, {"reason": reason, "with_older": with_older})
    runs = connection.get("/v1/cohort-releases")
    cohorts = sorted(
        item["cohort"]
        for item in runs
        if item["model"] == model and item["version"] in done["versions"]
    )
    done["cohorts"] = cohorts

    def tell() -> None:
        say(f"Revoked: {model} {', '.join(done['versions'])}.")
        if not done["committed"]:
            say("Devices do not know it yet: it waits for signatures.")
            say(SIGN)
        if cohorts:
            say(f"It still runs in: {', '.join(cohorts)}.")
            say("Next: push a good release and roll it out there: edgefleet rollout start")
        elif done["committed"]:
            say(STATUS)

    show(done, as_json, tell)


def _rotate_top(
    context: typer.Context,
    role: str,
    folder: Path | None,
    keys: int,
    threshold: int,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    from fleet_server.trust import offline

    if folder is None:
        if (keys, threshold) != (3, 2):
            raise CommandError("--keys and --threshold are for --offline.", "Give --offline DIR.")
        after = f"Next: take it off the server's disk: edgefleet trust rotate {role} --offline DIR"
        _rotate(context, {"role": role}, as_json, after)
        return
    if threshold > keys:
        raise CommandError(f"{threshold} of {keys} keys cannot sign.", "Give more --keys.")
    connection = connect(context)
    made = offline.make_keys(folder, role, keys)
    given = [offline.held(item.public_key) for item in made.values()]
    body = {"role": role, "keys": _shown(given), "threshold": threshold}
    done = connection.post("/v1/trust/rotations", body)
    if not done["committed"]:
        # The new keys are at hand; the old ones may be, too.
        here = offline.find_keys(folder)
        done = sign_pending(connection, PENDING, here, [], yes=yes)[-1]
    _keep_root(connection, folder)
    other = "targets" if role == "root" else "root"
    after = (
        f"Next: give each holder one of {', '.join(made)}, and remove {folder} from "
        f"this machine. Is {other} still on the server? edgefleet trust status"
    )
    _tell_rotated(done, as_json, after)


def _left(left_ms: int) -> str:
    # The timestamp lives for a day: in days it would always be over.
    return f"{left_ms // DAY_MS} d" if left_ms >= 2 * DAY_MS else f"{left_ms // HOUR_MS} h"


def _keep_root(connection: Connection, folder: Path) -> None:
    """Put the newest root beside the keys: a server that is restored from a backup may lack it."""
    roles = connection.get("/v1/trust/status")["roles"]
    version = next(item["version"] for item in roles if item["role"] == "root")
    name = f"{version}.root.json"
    try:
        (folder / name).write_text(connection.text(f"/v1/trust/metadata/{name}"), encoding="utf-8")
    except OSError as error:
        say(f"Note: {name} cannot be kept in {folder}: {error.strerror}.")


def _rotate(context: typer.Context, body: dict[str, Any], as_json: bool, after: str) -> None:
    done = connect(context).post("/v1/trust/rotations", body)
    _tell_rotated(done, as_json, after)


def _tell_rotated(done: dict[str, Any], as_json: bool, after: str) -> None:
    def tell() -> None:
        if done["committed"]:
            say(sentence(f"done: {done['what']}"))
            say(after)
        else:
            say(sentence(f"{done['what']} waits for signatures"))
            say(SIGN)

    show(done, as_json, tell)


def _tell_signed(outcomes: list[dict[str, Any]]) -> None:
    for item in outcomes:
        ended = "committed" if item["committed"] else "signed; others have to sign, too"
        say(f"{item['proposal']}: {ended}.")
    waits = any(not item["committed"] for item in outcomes)
    say(SIGN if waits else STATUS)


def _shown(keys: list[Any]) -> list[dict[str, Any]]:
    return [{"keyid": key.keyid, "public": key.public} for key in keys]
