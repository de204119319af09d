"""How a person signs what waits: shown in words first, asked, then signed where the keys are.

The words are made here, from the very bytes that are signed, whatever the server says of them.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import typer
from securesystemslib.signer import CryptoSigner

from fleet_server.command_line.connection import Connection
from fleet_server.command_line.output import CommandError, explain
from fleet_server.trust import offline, wording
from fleet_server.trust.catalogue.signers import HeldKey

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
    for proposal in proposals:
        signatures = _sign(proposal, keys, uris)
        if not signatures:
            explain(f"{proposal['id']}: none of your keys is asked for.")
            continue
        _explain(proposal)
        if not yes:
            typer.confirm(f"Sign {len(signatures)} file(s)?", abort=True, err=True)
        path = "/v1/trust/pending/signatures"
        if base != "/v1/trust/pending":
            path = base.removesuffix("pending") + "signatures"
        body = {"proposal": proposal["id"], "signatures": signatures}
        outcomes.append({"proposal": proposal["id"], **connection.post(path, body)})
    if not outcomes:
        raise CommandError(
            "None of your keys is asked for.",
            "Others have to sign: edgefleet trust status names the keys.",
        )
    return outcomes


def _sign(proposal: Json, keys: Sequence[CryptoSigner], uris: Sequence[str]) -> list[Json]:
    signatures: dict[tuple[str, str], str] = {}
    for file in proposal["files"]:
        data = base64.b64decode(file["signed_part"])
        wanted = [
            HeldKey(key["keyid"], key["public"], "")
            for need in proposal["needs"]
            if need["role"] == file["role"]
            for key in need["unsigned"]
        ]
        for keyid, signature in offline.sign(data, wanted, keys, uris).items():
            signatures[file["role"], keyid] = signature
    return [
        {"role": role, "keyid": keyid, "signature": signature}
        for (role, keyid), signature in signatures.items()
    ]


def _explain(proposal: Json) -> None:
    explain(f"{proposal['id']}: {'; '.join(proposal['why'])}")
    for file in sorted(proposal["files"], key=lambda item: item["role"] != "root"):
        after = json.loads(base64.b64decode(file["signed_part"]))
        before = file["before"] and json.loads(base64.b64decode(file["before"]))
        for line in wording.describe(file["role"], before or None, after):
            explain(f"  {line}")
        stated = after.get("targets", {}).get(KEYSET)
        data = base64.b64decode(proposal["documents"].get(KEYSET, ""))
        if file["role"] == "targets" and stated is not None and data:
            if hashlib.sha256(data).hexdigest() != stated["hashes"].get("sha256"):
                raise CommandError(
                    "The keyset that the server shows is not the one that would be signed.",
                    "Do not sign. Look into the server: see docs/operating/incidents.md",
                )
            for line in wording.describe_keyset(None, data):
                explain(f"  keyset: {line}")


def _signed(file: Json) -> str:
    return base64.b64decode(file["signed_part"]).decode(errors="replace")
