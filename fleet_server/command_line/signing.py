"""How a person signs what waits: shown in words first, asked, then signed where the keys are.

The words are made here, from the very bytes that are signed, whatever the server says of them.
"""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import typer
from securesystemslib.signer import CryptoSigner

from fleet_server.command_line.connection import Connection
from fleet_server.command_line.output import CommandError, explain
from fleet_server.trust import offline, wording
from fleet_server.trust.catalogue.signers import HeldKey
from fleet_server.trust.pin import VARIABLE, Ask, from_environment

KEYSET = "keyset.json"

Json = dict[str, Any]


def sign_pending(
    connection: Connection,
    base: str,
    keys: Sequence[CryptoSigner],
    uris: Sequence[str],
    *,
    yes: bool,
    only: str = "",
) -> list[Json]:
    """Sign every proposal for which a key is at hand, after asking.

    Args:
        connection: the server.
        base: where proposals and signatures are: ``/v1/trust/pending``, or a model's.
        keys: private keys at hand.
        uris: of securesystemslib.
        yes: do not ask.
        only: a digest that has to be among the targets; other proposals are left alone.

    Returns:
        One outcome for each proposal.

    Raises:
        CommandError: if nothing waits, no key fits, or the server shows what it does not ask for.
    """
    proposals = connection.get(base)["proposals"]
    if only:
        proposals = [item for item in proposals if any(only in _signed(f) for f in item["files"])]
    if not proposals:
        raise CommandError("Nothing waits for signatures.", "See: edgefleet trust status")
    outcomes: list[Json] = []
    ask = _asker()
    for proposal in proposals:
        signatures = _sign(proposal, keys, uris, ask)
        if not signatures:
            explain(f"{proposal['id']}: none of your keys is asked for.")
            continue
        _explain(connection, proposal)
        if not yes:
            typer.confirm(f"Sign {len(signatures)} file(s)?", abort=True, err=True)
        path = "/v1/trust/pending/signatures"
        if base != "/v1/trust/pending":
            path = base.removesuffix("pending") + "signatures"
        body = {"proposal": proposal["id"], "signatures": signatures}
        outcomes.append({"proposal": proposal["id"], **connection.post(path, body)})
    if not outcomes:
        for uri in uris:
            reasons = [offline.unusable(uri, key, ask) for key in _wanted(proposals[0])]
            if all(reasons):
                raise CommandError(
                    f"{uri[:100]} cannot be used: {'; '.join(dict.fromkeys(reasons))}",
                    "Install what securesystemslib needs for it, or look at the URI.",
                )
        raise CommandError(
            "None of your keys is asked for.",
            "Others have to sign: edgefleet trust status names the keys.",
        )
    return outcomes


def _asker() -> Ask:
    """Return what asks for the PIN of an HSM, once, if the environment does not hold it."""
    held: list[str] = []

    def ask(what: str) -> str:
        if VARIABLE in os.environ:
            return from_environment(what)
        if not held:
            held.append(typer.prompt(what, hide_input=True, err=True))
        return held[0]

    return ask


def _wanted(proposal: Json, role: str = "") -> list[HeldKey]:
    return [
        HeldKey(key["keyid"], key["public"], "")
        for need in proposal["needs"]
        if role in ("", need["role"])
        for key in need["unsigned"]
    ]


def _sign(
    proposal: Json, keys: Sequence[CryptoSigner], uris: Sequence[str], ask: Ask
) -> list[Json]:
    signatures: dict[tuple[str, str], str] = {}
    for file in proposal["files"]:
        data = base64.b64decode(file["signed_part"])
        wanted = _wanted(proposal, file["role"])
        for keyid, signature in offline.sign(data, wanted, keys, uris, ask).items():
            signatures[file["role"], keyid] = signature
    return [
        {"role": role, "keyid": keyid, "signature": signature}
        for (role, keyid), signature in signatures.items()
    ]


def _explain(connection: Connection, proposal: Json) -> None:
    explain(f"{proposal['id']}: {'; '.join(proposal['why'])}")
    for file in sorted(proposal["files"], key=lambda item: item["role"] != "root"):
        after = json.loads(base64.b64decode(file["signed_part"]))
        before = file["before"] and json.loads(base64.b64decode(file["before"]))
        for line in wording.describe(file["role"], before or None, after):
            explain(f"  {line}")
        coming, present = _keyset_digest(after), _keyset_digest(before or {})
        if coming is not None and coming != present:
            shown = base64.b64decode(proposal["documents"].get(KEYSET, ""))
            held = None
            if present is not None:
                held = connection.text(f"/v1/trust/targets/{present}.{KEYSET}").encode()
            for data, digest in ((shown, coming), (held, present)):
                if data is not None and hashlib.sha256(data).hexdigest() != digest:
                    raise CommandError(
                        "The server does not show the keyset that would be signed, or another "
                        "than the present one.",
                        "Do not sign. Look into the server: see docs/operating/incidents.md",
                    )
            for line in wording.describe_keyset(held, shown):
                explain(f"  keyset: {line}")


def _keyset_digest(signed: Json) -> str | None:
    stated = signed.get("targets", {}).get(KEYSET)
    return None if stated is None else str(stated["hashes"].get("sha256"))


def _signed(file: Json) -> str:
    return base64.b64decode(file["signed_part"]).decode(errors="replace")
