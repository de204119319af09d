"""Guards from tokens spent twice, late, by another, or for nothing."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from fleet_contract import topics
from fleet_contract.messages.presence import Presence
from fleet_contract.messages.progress import Progress
from fleet_contract.topics import DeviceChannel
from fleet_contract.trust.checks import check_assignment
from fleet_server.database import Database
from fleet_server.devices import enrolment, leaving, recording, repository, service
from fleet_server.devices.enrolment import Enrolled
from fleet_server.dispatch import service as dispatch
from fleet_server.errors import Conflict, DomainError, Invalid, Unauthorized
from fleet_server.trust.authority import certificates
from fleet_server.trust.authority.authority import Authority
from fleet_server.trust.keyring import Keyring
from tests.fleet_server.device_key import DeviceKey

Spend = Callable[..., Enrolled]
NewSecret = Callable[..., str]


def names(fleet: Database) -> list[str]:
    with fleet.reading() as session:
        return [view.name for view in service.devices(session, "home")]


def assignment_rows(fleet: Database, name: str) -> list[bytes]:
    topic = topics.device("home", name, DeviceChannel.ASSIGNMENT)
    with fleet.reading() as session:
        return [
            message.payload
            for message in dispatch.control_messages(session, "home")
            if message.topic == topic
        ]


def test_device_that_enrolled_finds_no_assignment(
    fleet: Database, keyring: Keyring, new_secret: NewSecret, spend: Spend
) -> None:
    spend(new_secret(site="lab"), "dev-1")
    (payload,) = assignment_rows(fleet, "dev-1")
    accepted = check_assignment(
        payload, keyset=keyring.keyset, fleet="home", device="dev-1", held=None
    )
    assert accepted.document.cohort == "default"
    assert accepted.document.labels == {"site": "lab"}


def test_token_spent_twice(fleet: Database, new_secret: NewSecret, spend: Spend) -> None:
    secret = new_secret()
    spend(secret, "dev-1")
    with pytest.raises(Unauthorized) as refused:
        spend(secret, "dev-2")
    assert refused.value.code == "used_enrolment_token"
    assert names(fleet) == ["dev-1"]
    assert assignment_rows(fleet, "dev-2") == []


def check_spent_twice_in_parallel(
    fleet: Database, new_secret: NewSecret, spend: Spend, same_name: bool
) -> None:
    secrets = [new_secret()] * 6 if not same_name else [new_secret() for _ in range(6)]
    outcomes: list[Enrolled | DomainError] = []
    barrier = threading.Barrier(len(secrets))

    def run(secret: str, name: str) -> None:
        barrier.wait()
        try:
            outcomes.append(spend(secret, name))
        except DomainError as error:
            outcomes.append(error)

    threads = [
        threading.Thread(target=run, args=(secret, "same" if same_name else f"dev-{number}"))
        for number, secret in enumerate(secrets)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == len(secrets)
    assert sum(isinstance(outcome, Enrolled) for outcome in outcomes) == 1
    assert len(names(fleet)) == 1


@pytest.mark.parametrize("same_name", [False, True])
def test_token_or_name_spent_twice_in_parallel(
    fleet: Database, new_secret: NewSecret, spend: Spend, same_name: bool
) -> None:
    check_spent_twice_in_parallel(fleet, new_secret, spend, same_name)


def test_name_that_is_taken_costs_the_token(
    fleet: Database, new_secret: NewSecret, spend: Spend
) -> None:
    spend(new_secret(), "dev-1")
    secret = new_secret()
    with pytest.raises(Conflict):
        spend(secret, "dev-1")
    assert spend(secret, "dev-2").device == "dev-2"


def test_token_after_its_time(
    fleet: Database, clock: Any, new_secret: NewSecret, spend: Spend
) -> None:
    secret = new_secret(valid_ms=60_000)
    clock.wall_ms += 60_000
    with pytest.raises(Unauthorized) as refused:
        spend(secret, "dev-1")
    assert refused.value.code == "expired_enrolment_token"
    assert names(fleet) == []


def test_secret_that_was_guessed(fleet: Database, new_secret: NewSecret, spend: Spend) -> None:
    secret = new_secret()
    with pytest.raises(Unauthorized) as refused:
        spend("0" * 64, "dev-1")
    assert refused.value.code == "unknown_enrolment_token"
    assert names(fleet) == []
    assert secret not in refused.value.detail


def test_token_of_another_device(fleet: Database, new_secret: NewSecret, spend: Spend) -> None:
    secret = new_secret(device="dev-7")
    with pytest.raises(Unauthorized):
        spend(secret, "dev-8")
    assert spend(secret, "dev-7").device == "dev-7"


@pytest.mark.parametrize("name", ["../etc", "a/b", "Dev", "-a", "a", "x" * 64, "dev\n", "+", "#"])
def test_token_for_a_name_that_is_a_path(new_secret: NewSecret, name: str) -> None:
    with pytest.raises(Invalid):
        new_secret(device=name)


@pytest.mark.parametrize("valid_ms", [-1, 0, 999, enrolment.LONGEST_TOKEN_MS + 1, 2**70])
def test_token_that_is_valid_for_ever(new_secret: NewSecret, valid_ms: int) -> None:
    with pytest.raises(Invalid):
        new_secret(valid_ms=valid_ms)


def test_database_that_is_stolen_holds_no_secret(
    fleet: Database, new_secret: NewSecret, spend: Spend, authority: Authority
) -> None:
    secret = new_secret()
    spend(secret, "dev-1")
    fleet.close()
    assert fleet.url.database is not None
    with open(fleet.url.database, "rb") as file:
        content = file.read()
    assert secret.encode() not in content
    for path in authority.folder.glob("*.key"):
        assert path.read_bytes().splitlines()[1] not in content


def test_answer_that_got_lost_costs_the_token(
    fleet: Database, new_secret: NewSecret, spend: Spend
) -> None:
    secret, key = new_secret(), DeviceKey()
    spend(secret, "dev-1", key)
    assert spend(secret, "dev-1", key).device == "dev-1"
    # Who has the token but not the key is somebody else.
    with pytest.raises(Conflict):
        spend(secret, "dev-1", DeviceKey())
    with pytest.raises(Unauthorized):
        spend(secret, "dev-2", key)


def test_batch_that_enrols_more_than_it_is_for(
    fleet: Database, new_secret: NewSecret, spend: Spend
) -> None:
    secret = new_secret(count=2, prefix="line7-", site="plant")
    with pytest.raises(Unauthorized):
        spend(secret, "dev-1")
    assert {spend(secret, f"line7-{number}").device for number in (1, 2)} == {"line7-1", "line7-2"}
    with pytest.raises(Conflict):
        spend(secret, "line7-1")
    with pytest.raises(Unauthorized) as refused:
        spend(secret, "line7-3")
    assert refused.value.code == "used_enrolment_token"


@pytest.mark.parametrize("wrong", [{"count": 0}, {"count": 10_001}, {"prefix": "../"}])
def test_batch_without_bounds(new_secret: NewSecret, wrong: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        new_secret(**wrong)


def test_revoked_token_that_still_enrols(
    fleet: Database, new_secret: NewSecret, spend: Spend, clock: Any
) -> None:
    secret = new_secret()
    with fleet.transaction() as session:
        (row,) = repository.tokens(session, "home", 10)
        repository.revoke_token(session, row, clock.now_ms())
    with pytest.raises(Unauthorized) as refused:
        spend(secret, "dev-1")
    assert refused.value.code == "revoked_enrolment_token"


def test_replaced_device_loses_its_labels_or_its_place(
    fleet: Database, new_secret: NewSecret, spend: Spend, clock: Any
) -> None:
    spend(new_secret(site="lab"), "dev-1")
    with fleet.transaction() as session:
        assert leaving.retire(session, "home", "dev-1", now_ms=clock.now_ms()) == 1
        assert service.members(session, "home", "default") == []
        with pytest.raises(Conflict):
            leaving.retire(session, "home", "dev-1", now_ms=clock.now_ms())
    spend(new_secret(device="dev-1", replaces=True), "dev-1")
    with fleet.reading() as session:
        (view,) = service.members(session, "home", "default")
    assert view.labels == {"site": "lab"} and view.retired_ms is None


def test_replaced_device_is_not_heard_because_of_who_had_its_name(
    fleet: Database, new_secret: NewSecret, spend: Spend, clock: Any
) -> None:
    def said(birth: int, session_id: str) -> Presence:
        return Presence(True, birth, session_id, 1, "0.1.0", None, {"digits": session_id})

    spend(new_secret(), "dev-1")
    last = Progress("a" * 16, 1 << 40, 9, [])
    with fleet.transaction() as session:
        assert recording.record_presence(session, "home", "dev-1", said(1 << 60, "a" * 16), 1)
        assert recording.record_progress(session, "home", "dev-1", last, 1) == 9
    secret, key = new_secret(device="dev-1", replaces=True), DeviceKey()
    spend(secret, "dev-1", key)
    with fleet.transaction() as session:
        assert service.device(session, "home", "dev-1").active == {}
        assert recording.record_presence(session, "home", "dev-1", said(1, "b" * 16), 2)
        first = replace(last, session="b" * 16, boot=1, sequence=1)
        assert recording.record_progress(session, "home", "dev-1", first, 2) == 1
    # An answer that got lost is no other device.
    spend(secret, "dev-1", key)
    with fleet.reading() as session:
        assert service.device(session, "home", "dev-1").active == {"digits": "b" * 16}
        assert service.device(session, "home", "dev-1").alarm is None


def test_request_for_another_name_or_with_another_key(
    fleet: Database, new_secret: NewSecret, keyring: Keyring, authority: Authority, spend: Spend
) -> None:
    good = DeviceKey().csr("dev-1")
    lines = good.splitlines()
    lines[3] = lines[3][::-1]
    for csr in ("", "x" * 20_000, DeviceKey().csr("dev-2"), "\n".join(lines), good[:-40]):
        with pytest.raises(Invalid) as refused:
            certificates.read_request(csr, "dev-1")
        assert refused.value.code == "bad_certificate_request"
    assert names(fleet) == []


def test_request_with_any_byte_changed_is_refused_in_words() -> None:
    der = x509.load_pem_x509_csr(DeviceKey().csr("dev-1").encode()).public_bytes(Encoding.DER)
    for index in range(len(der)):
        broken = bytearray(der)
        broken[index] ^= 0x55
        text = base64.encodebytes(broken).decode()
        with pytest.raises(Invalid) as refused:
            certificates.read_request(
                f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n",
                "dev-1",
            )
        assert refused.value.code == "bad_certificate_request"
