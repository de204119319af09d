"""Enrolment: the one-time token that a person carries to a device, and what is exchanged for it.

The token carries the server's address and the hash of the fleet's TUF root, so that a device trusts
nobody on first contact but whom the operator named.
"""

import base64
import binascii
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract import codec, limits
from fleet_contract.errors import Reason, Refused
from fleet_contract.manifest import Capabilities
from fleet_contract.names import Digest, Identity

TOKEN_CHARACTERS = 2048
ANCHORS_PATH = "anchors.pem"
"""Path, among the targets of the top-level role, of the certificates in PEM that a device trusts to
vouch for the server and the broker. It is fetched over whatever connection there is: the metadata
proves it, so that a device whose anchors are of no use any more can learn the new ones."""

Pem = Annotated[str, Meta(max_length=limits.CERTIFICATE_BYTES)]


class EnrolmentToken(msgspec.Struct, frozen=True):
    """What a one-time token says: where to enrol, the secret to show, and whom to trust.

    ``root`` is the SHA-256 of the file ``root.json``, which the device fetches and pins.
    """

    server: Annotated[str, Meta(max_length=300)]
    fleet: Identity
    secret: Annotated[str, Meta(min_length=32, max_length=128)]
    root: Digest


class EnrolmentRequest(msgspec.Struct, frozen=True):
    """Sent by a device to spend its token.

    ``csr`` is a PKCS #10 request in PEM, signed by the key that never leaves the device, for the
    common name ``device``.
    """

    secret: Annotated[str, Meta(min_length=32, max_length=128)]
    device: Identity
    capabilities: Capabilities
    csr: Pem


class EnrolmentAnswer(msgspec.Struct, frozen=True):
    """What an enrolled device keeps.

    ``broker`` is an MQTT URL, ``artifacts`` the HTTP URL below which manifests and artifacts lie.
    ``certificate`` (PEM) is who the device is to the broker and the server: its common name is the
    device's name.
    """

    device: Identity
    fleet: Identity
    broker: str
    artifacts: str
    certificate: Pem


class RenewalRequest(msgspec.Struct, frozen=True):
    """Sent by a device over a connection that its certificate, also an expired one, authenticates.

    ``csr`` may be for a new key. Asking again with the same request is answered again.
    """

    csr: Pem


class RenewalAnswer(msgspec.Struct, frozen=True):
    """The new certificate, and where broker and artifacts are now."""

    broker: str
    artifacts: str
    certificate: Pem


def write_token(token: EnrolmentToken) -> str:
    """Return the token as one word of URL-safe characters."""
    return base64.urlsafe_b64encode(codec.encode_json(token)).decode().rstrip("=")


def read_token(text: str) -> EnrolmentToken:
    """Read a token as a person pasted it.

    Raises:
        Refused: ``malformed`` if it is no token, ``too_large`` if it is too long for one.
    """
    word = text.strip()
    if len(word) > TOKEN_CHARACTERS:
        raise Refused(Reason.TOO_LARGE, "an enrolment token is shorter than this")
    try:
        data = base64.urlsafe_b64decode(word + "=" * (-len(word) % 4))
    except (binascii.Error, ValueError) as error:
        raise Refused(Reason.MALFORMED, "not an enrolment token") from error
    return codec.decode_json(data, EnrolmentToken, limit_bytes=limits.STATUS_BYTES)
