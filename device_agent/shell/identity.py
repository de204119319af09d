"""Who this device is: enrolment with a one-time token, and what is kept of it.

Decides whom a device believes on first contact: the server must show the TUF root whose hash the
token carries, and a keyset that this root's metadata vouches for. Only then is the token spent, so
that a wrong server learns no secret. The identity is a secret file
(mode 0600) beside the store. What the token says is the contract's.
"""

import shutil
from pathlib import Path

import msgspec

from device_agent.core.state import Record
from device_agent.errors import EnrolmentFailed, NotEnrolled, StepFailed
from device_agent.shell import flash
from device_agent.shell.catalogue import FOLDER, Catalogue
from device_agent.shell.clock import Clock
from device_agent.shell.http_source import HttpFailure, HttpSource
from device_agent.shell.store import Store
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
    """What an enrolled device keeps. ``password`` authenticates it to broker and server.

    ``keyset`` is the one of the enrolment; the record holds a newer one, if there is.
    """

    server: str
    fleet: Identity
    device: Identity
    broker: str
    artifacts: str
    password: str
    keyset: str

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
        EnrolmentFailed: in a sentence that says what to do.
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
    keyset = _first_contact(fresh, token, clock)
    answer = _exchange(token, EnrolmentRequest(token.secret, device, capabilities), clock)
    if answer.fleet != token.fleet:
        raise EnrolmentFailed(f"{token.server} serves fleet {answer.fleet}, not {token.fleet}")
    identity = DeviceIdentity(
        token.server,
        answer.fleet,
        answer.device,
        answer.broker,
        answer.artifacts,
        answer.password,
        keyset.decode(),
    )
    try:
        shutil.rmtree(store.folder / FOLDER, ignore_errors=True)
        flash.move_file(fresh, store.folder / FOLDER)
        store.save_record(identity.first_record())
        flash.write_file(store.folder / FILE_NAME, codec.encode_json(identity))
    except OSError as error:
        raise EnrolmentFailed(
            f"the token is spent, but {store.folder} cannot be written ({error.strerror}): "
            "mend that and enrol with a new token"
        ) from error
    return identity


def _first_contact(folder: Path, token: EnrolmentToken, clock: Clock) -> bytes:
    """Pin the root that the token names in a new folder, and return the keyset below it."""

    def never() -> bool:
        return False

    try:
        shutil.rmtree(folder, ignore_errors=True)
        catalogue = Catalogue(folder, token.server, clock)
        source = HttpSource(token.server, ticks_ns=clock.ticks_ns)
        # 1. The root is the one that the token names.
        path = f"v1/trust/roots/{token.root}"
        with source.ask("GET", path, size_bytes=limits.ROOT_BYTES) as answer:
            root = answer.read(limits.ROOT_BYTES)
            if answer.status == 404:
                raise EnrolmentFailed(
                    f"{token.server} is not the server that this token is for: it knows no such "
                    "root"
                )
        catalogue.pin(root, token.root)
        # 2. The keyset is what the metadata below that root says, and of the token's fleet.
        keyset = catalogue.keyset(time_floor_ms=0, canceled=never)
        read_keyset(keyset, fleet=token.fleet, held=None)
    except (ValueError, HttpFailure) as error:
        raise _unreachable(token, error) from error
    except OSError as error:
        raise EnrolmentFailed(f"{folder.parent} cannot be written ({error.strerror})") from error
    except StepFailed as failed:
        raise EnrolmentFailed(
            f"{token.server} does not show what the root of this token vouches for ({failed}): it "
            "is another server, or this device's clock is wrong"
        ) from failed
    except Refused as refused:
        raise EnrolmentFailed(f"{token.server} has no keyset for this fleet ({refused})") from (
            refused
        )
    return keyset


def _unreachable(token: EnrolmentToken, error: Exception) -> EnrolmentFailed:
    return EnrolmentFailed(
        f"{token.server} cannot be reached ({error}): is the server running, and is this "
        "address right from here?"
    )


def _exchange(token: EnrolmentToken, request: EnrolmentRequest, clock: Clock) -> EnrolmentAnswer:
    try:
        source = HttpSource(token.server, ticks_ns=clock.ticks_ns)
        with source.ask(
            "POST",
            "v1/devices/enrol",
            size_bytes=ANSWER_BYTES,
            headers={"Content-Type": "application/json"},
            body=codec.encode_json(request),
        ) as answer:
            body = answer.read(ANSWER_BYTES)
            if answer.status not in (200, 201):
                raise EnrolmentFailed(_problem(answer.status, body))
            return codec.decode_json(body, EnrolmentAnswer, limit_bytes=ANSWER_BYTES)
    except (ValueError, HttpFailure) as error:
        raise _unreachable(token, error) from error
    except Refused as refused:
        raise EnrolmentFailed(f"{token.server} gave no usable answer ({refused.detail})") from (
            refused
        )


class _Problem(msgspec.Struct):
    """What a device reads of a problem+json answer."""

    title: str = ""
    detail: str = ""
    advice: str = ""


def _problem(status: int, body: bytes) -> str:
    try:
        problem = codec.decode_json(body, _Problem, limit_bytes=ANSWER_BYTES)
    except Refused:
        problem = _Problem()
    words = " ".join(filter(None, (problem.detail or problem.title, problem.advice)))[:500]
    return f"the server refused ({status}): {words or 'it gave no reason'}"
