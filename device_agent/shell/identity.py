"""Who this device is: enrolment with a one-time token, and what is kept of it.

Decides in which order a device joins: whom to believe (:mod:`device_agent.shell.first_contact`), a
key of its own, then the token is spent for a certificate of that key. The key lies in
:mod:`device_agent.shell.certificate`'s files; the identity beside them holds no secret. What the
token says is the contract's.
"""

import contextlib
import shutil

import msgspec

from device_agent.core.state import Record
from device_agent.errors import EnrolmentFailed, NotEnrolled
from device_agent.shell import certificate, flash
from device_agent.shell.catalogue import FOLDER
from device_agent.shell.certificate import CertificateRejected
from device_agent.shell.clock import Clock
from device_agent.shell.first_contact import Contact, first_contact, unreachable
from device_agent.shell.http_source import HttpFailure, HttpSource
from device_agent.shell.mqtt import BrokerAddress
from device_agent.shell.store import Store
from device_agent.shell.tls import ANCHORS_FILE, unverified
from fleet_contract import codec, limits
from fleet_contract.enrolment import (
    EnrolmentAnswer,
    EnrolmentRequest,
    EnrolmentToken,
    read_token,
)
from fleet_contract.errors import InvalidName, Refused
from fleet_contract.manifest import Capabilities
from fleet_contract.names import Identity, check_identity
from fleet_contract.trust.keyset import read_keyset

ANSWER_BYTES = 2 * limits.ENVELOPE_BYTES
"""The keyset, and some addresses."""
FILE_NAME = "identity.json"


class DeviceIdentity(msgspec.Struct, frozen=True):
    """What an enrolled device keeps beside its key and certificate.

    ``keyset`` is the one of the enrolment; the record holds a newer one, if there is.
    """

    server: str
    fleet: Identity
    device: Identity
    broker: str
    artifacts: str
    keyset: str

    @classmethod
    def nowhere(cls, record: Record) -> "DeviceIdentity":
        """Return what is left when the identity is lost and the record is not.

        Nobody has these addresses (RFC 6761, 6.4): the models answer, and nothing is asked.
        """
        http, mqtt = "https://server.invalid", "mqtts://broker.invalid"
        return cls(http, record.fleet, record.device, mqtt, http, "")

    def first_record(self) -> Record:
        """Return the record of a device that has seen nothing yet.

        Raises:
            Refused: if the stored keyset cannot be read.
        """
        keyset = read_keyset(self.keyset.encode(), fleet=self.fleet, held=None)
        return Record(self.fleet, self.device, keyset)


def load_identity(store: Store) -> DeviceIdentity:
    """Return the identity in a store.

    Raises:
        NotEnrolled: if there is none, or none that can be read.
    """
    data = flash.read_file(store.folder / FILE_NAME, limit_bytes=ANSWER_BYTES)
    if data is None:
        raise NotEnrolled(
            f"{store.folder} holds no identity: run device-agent enroll with a token first"
        )
    try:
        return codec.decode_json(data, DeviceIdentity, limit_bytes=ANSWER_BYTES)
    except Refused as refused:
        raise NotEnrolled(
            f"{FILE_NAME} is damaged ({refused.detail}): enrol the device with a new token"
        ) from refused


def save_identity(store: Store, identity: DeviceIdentity) -> None:
    """Store who this device is, durably. Raises OSError."""
    flash.write_file(store.folder / FILE_NAME, codec.encode_json(identity))


def check_addresses(broker: str, artifacts: str) -> None:
    """Check what an answer says of broker and artifacts. Raises ValueError."""
    BrokerAddress(broker)
    HttpSource(artifacts, ticks_ns=lambda: 0, tls=unverified)


def enrol(
    store: Store, token_text: str, device: str, capabilities: Capabilities, clock: Clock
) -> DeviceIdentity:
    """Spend a one-time token and store who this device is from then on.

    Args:
        store: where; an identity in it is replaced only if the enrolment succeeds.
        token_text: as the operator gave it.
        device: the name that this device shall have.
        capabilities: what it offers.
        clock: for the deadline of the request.

    Raises:
        EnrolmentFailed: in a sentence that says what to do. What waits for an answer stays: to
            enrol again is to ask for the same key.
    """
    try:
        token = read_token(token_text)
        check_identity(device, "device")
    except Refused as refused:
        raise EnrolmentFailed(
            f"this is not an enrolment token ({refused.detail}): copy it whole"
        ) from refused
    except InvalidName as error:
        raise EnrolmentFailed(str(error)) from error
    fresh = store.folder / f"{FOLDER}.new"
    contact = first_contact(fresh, token, clock)
    try:
        key = certificate.next_key(store.folder)
    except OSError as error:
        raise EnrolmentFailed(f"{store.folder} cannot be written ({error.strerror})") from error
    request = EnrolmentRequest(
        token.secret, device, capabilities, certificate.request_for(key, device)
    )
    answer = _exchange(token, request, contact, clock)
    if answer.fleet != token.fleet or answer.device != device:
        raise EnrolmentFailed(
            f"{token.server} answers for {answer.device} of fleet {answer.fleet}, not for {device} "
            f"of {token.fleet}"
        )
    try:
        pair = certificate.join(key, answer.certificate, device)
        check_addresses(answer.broker, answer.artifacts)
    except (CertificateRejected, ValueError) as error:
        raise EnrolmentFailed(f"{token.server} gave no usable identity ({error})") from error
    identity = DeviceIdentity(
        token.server,
        answer.fleet,
        answer.device,
        answer.broker,
        answer.artifacts,
        contact.keyset.decode(),
    )
    try:
        shutil.rmtree(store.folder / FOLDER, ignore_errors=True)
        flash.move_file(fresh, store.folder / FOLDER)
        store.save_record(identity.first_record())
        _save_anchors(store, contact)
        certificate.keep(store.folder, pair)
        save_identity(store, identity)
        # Last: until then the same key is asked for again.
        certificate.forget_next_key(store.folder)
    except OSError as error:
        raise EnrolmentFailed(
            f"the token is spent, but {store.folder} cannot be written ({error.strerror}): "
            "mend that and enrol with a new token"
        ) from error
    return identity


def _save_anchors(store: Store, contact: Contact) -> None:
    path = store.folder / ANCHORS_FILE
    if contact.anchors:
        flash.write_file(path, contact.anchors)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _exchange(
    token: EnrolmentToken, request: EnrolmentRequest, contact: Contact, clock: Clock
) -> EnrolmentAnswer:
    try:
        source = HttpSource(token.server, ticks_ns=clock.ticks_ns, tls=contact.tls())
        with source.ask(
            "POST",
            "v1/devices/enrol",
            size_bytes=ANSWER_BYTES,
            headers={"Content-Type": "application/json"},
            body=codec.encode_json(request),
        ) as answer:
            body = answer.read(ANSWER_BYTES)
            if answer.status not in (200, 201):
                raise EnrolmentFailed(problem_of(answer.status, body))
            return codec.decode_json(body, EnrolmentAnswer, limit_bytes=ANSWER_BYTES)
    except (ValueError, HttpFailure) as error:
        raise unreachable(token, error) from error
    except Refused as refused:
        raise EnrolmentFailed(f"{token.server} gave no usable answer ({refused.detail})") from (
            refused
        )


class _Problem(msgspec.Struct):
    """What a device reads of a problem+json answer."""

    title: str = ""
    detail: str = ""
    advice: str = ""


def problem_of(status: int, body: bytes) -> str:
    """Return what a problem+json answer says, in a sentence."""
    try:
        problem = codec.decode_json(body, _Problem, limit_bytes=ANSWER_BYTES)
    except Refused:
        problem = _Problem()
    words = " ".join(filter(None, (problem.detail or problem.title, problem.advice)))[:500]
    return f"the server refused ({status}): {words or 'it gave no reason'}"
