"""Who may sign the models of which family: the policy of an installation, and what it says.

Decides which rule holds for a model, whether a signature is needed, and whose is believed. The
policy is a JSON file beside which the named keys and authorities lie. It is read once, at start;
one that cannot be read in full stops the start: a policy that is half there protects nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from msgspec import Meta

from fleet_contract import codec
from fleet_contract.errors import Refused
from fleet_server.access.users import covers
from fleet_server.errors import Invalid, StartError
from fleet_server.provenance import bundle

POLICY_BYTES = 256 * 1024
FILE_BYTES = 64 * 1024
_Family = Annotated[str, Meta(pattern=r"^(\*|[a-z0-9][a-z0-9_-]{0,63}\*?)\Z")]
# A name below the policy's folder: no step up, no home, nothing hidden.
_File = Annotated[str, Meta(pattern=r"^(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}\Z")]
_Identity = Annotated[str, Meta(pattern=r"^[!-~]([ -~]{0,198}[!-~])?\Z")]


class _Authority(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Certificates in PEM, and the names that a signer's certificate may have under them."""

    ca: _File
    identities: Annotated[list[_Identity], Meta(min_length=1, max_length=100)]


class _Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    models: _Family
    required: bool
    keys: Annotated[dict[_Identity, _File], Meta(max_length=100)] = {}
    certificates: Annotated[list[_Authority], Meta(max_length=20)] = []


class _Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    families: Annotated[list[_Rule], Meta(max_length=1_000)]


class Origin(msgspec.Struct, frozen=True):
    """What was verified of a signature: how, whose, by which key, of which bundle and when.

    ``fingerprint`` is the key's SHA-256 as bundles name it, ``bundle`` the bundle's SHA-256.
    """

    method: str
    identity: str
    fingerprint: str
    bundle: str
    verified_ms: int


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority and whom it may vouch for: names, or endings or beginnings with one ``*``."""

    certificates: Sequence[x509.Certificate]
    identities: Sequence[str]


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may sign models of a family: names, or a beginning and ``*``; ``*`` alone is all."""

    models: str
    required: bool
    keys: Sequence[tuple[str, ec.EllipticCurvePublicKey]]
    authorities: Sequence[Authority]


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules; the first that covers a model is the one that holds."""

    rules: Sequence[Rule]

    def examine(
        self, model: str, model_digest: str, signature: bytes, *, now_ms: int
    ) -> Origin | None:
        """Return whose signature it is, None for an upload that has none and needs none.

        A signature that is there and cannot be believed is always refused: what is recorded as
        unsigned was sent without one.

        Raises:
            Invalid: with the code of what is missing or wrong.
        """
        rule = next((rule for rule in self.rules if covers(rule.models, model)), None)
        if not signature:
            if rule is not None and rule.required:
                raise Invalid(
                    "signature_required",
                    f"Models of the family {rule.models} have to be signed by whoever made them.",
                    "Sign it (model_signing sign key) and push with --signature model.sig.",
                )
            return None
        if rule is None:
            raise Invalid(
                "no_signers",
                f"Nobody is named who may sign {model}, so its signature cannot be believed.",
                "Name them in the provenance policy, or push without the signature.",
            )
        signed = bundle.read(signature)
        if signed.chain:
            method, identity, key = "certificate", *_by_certificate(rule, signed, now_ms)
        else:
            method, identity, key = "key", *_by_key(rule, signed)
        bundle.verify(signed, key, model_digest)
        return Origin(method, identity, bundle.fingerprint(key), signed.digest, now_ms)


def _by_key(rule: Rule, signed: bundle.Signed) -> tuple[str, ec.EllipticCurvePublicKey]:
    for identity, key in rule.keys:
        if bundle.fingerprint(key) == signed.hint:
            return identity, key
    named = signed.hint[:16] or "which it does not name"
    raise _stranger(f"the key {named} is none of those that may sign it")


def _by_certificate(
    rule: Rule, signed: bundle.Signed, now_ms: int
) -> tuple[str, ec.EllipticCurvePublicKey]:
    names = bundle.identities(signed.chain[0])
    refused: Invalid | None = None
    for authority in rule.authorities:
        try:
            key = bundle.verify_chain(signed, authority.certificates, now_ms=now_ms)
        except Invalid as error:
            refused = error
            continue
        for name in names:
            if any(_matches(pattern, name) for pattern in authority.identities):
                return name, key
        refused = None
    if refused is not None:
        raise refused
    shown = ", ".join(names)[:200] or "nobody"
    raise _stranger(f"the certificate of {shown} is none of those that may sign it")


def _stranger(why: str) -> Invalid:
    return Invalid(
        "signer_not_allowed",
        f"The model's signature is refused: {why}.",
        "Let somebody sign whom the provenance policy names for this family, or add the signer.",
    )


def _matches(pattern: str, name: str) -> bool:
    before, star, after = pattern.partition("*")
    if not star:
        return pattern == name
    long_enough = len(name) > len(before) + len(after)
    return long_enough and name.startswith(before) and name.endswith(after)


def load_policy(path: str) -> Policy:
    """Return the policy in a file; without a path, one that asks for nothing and believes nobody.

    Raises:
        StartError: if it, or a key or authority that it names, cannot be read.
    """
    if not path:
        return Policy(())
    file = Path(path).expanduser()
    try:
        read = codec.decode_json(_read(file, POLICY_BYTES), _Policy, limit_bytes=POLICY_BYTES)
        return Policy([_rule(rule, file.parent) for rule in read.families])
    except Refused as refused:
        raise _unusable(refused.detail) from refused
    except OSError as error:
        name = Path(error.filename).name if error.filename else "a file"
        raise _unusable(f"{name}: {error.strerror}") from error
    except ValueError as error:
        raise _unusable(str(error)[:200]) from error


def _rule(rule: _Rule, folder: Path) -> Rule:
    if rule.required and not rule.keys and not rule.certificates:
        raise ValueError(f"{rule.models} needs a signature, and nobody may sign it")
    keys = [(identity, _key(folder / name)) for identity, name in rule.keys.items()]
    authorities = []
    for item in rule.certificates:
        for pattern in item.identities:
            if pattern.count("*") > 1 or pattern == "*":
                raise ValueError(f"{pattern} says too little about who may sign {rule.models}")
        listed = x509.load_pem_x509_certificates(_read(folder / item.ca, FILE_BYTES))
        authorities.append(Authority(listed, item.identities))
    return Rule(rule.models, rule.required, keys, authorities)


def _key(path: Path) -> ec.EllipticCurvePublicKey:
    key = load_pem_public_key(_read(path, FILE_BYTES))
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError(f"{path.name} is no public key on an elliptic curve")
    return key


def _read(path: Path, limit_bytes: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise ValueError(f"{path.name} has more than {limit_bytes} bytes")
    return data


def _unusable(why: str) -> StartError:
    return StartError(
        "bad_provenance_policy",
        f"The provenance policy cannot be used: {why}.",
        "docs/guides/push-a-model.md shows one. It is named by EDGEFLEET_PROVENANCE_POLICY.",
    )
