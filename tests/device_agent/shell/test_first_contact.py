"""First contact over https: the token's secret is shown to whom the fleet's anchors vouch for."""

from datetime import timedelta

import pytest

from device_agent.errors import EnrolmentFailed
from device_agent.shell.certificate import NEXT_KEY_FILE, read_pair
from device_agent.shell.clock import SystemClock
from device_agent.shell.identity import enrol, load_identity
from device_agent.shell.store import Store
from device_agent.shell.tls import ANCHORS_FILE
from fleet_contract import codec
from fleet_contract.enrolment import EnrolmentRequest
from fleet_contract.manifest import Capabilities
from tests.device_agent.shell.toy_authority import LIFE, Issuer
from tests.device_agent.shell.toy_fleet import DEVICE, ToyFleet

CAPABILITIES = Capabilities({"onnxruntime": "1.31.1"}, "x86_64", 26, 13, 1 << 30)


def join(store: Store, fleet: ToyFleet) -> None:
    enrol(store, fleet.token(), DEVICE, CAPABILITIES, SystemClock())


def test_device_joins_over_https_with_a_key_of_its_own(secure_web: ToyFleet, store: Store) -> None:
    join(store, secure_web)
    assert load_identity(store).server.startswith("https://")
    assert read_pair(store.folder, DEVICE).device == DEVICE
    assert (store.folder / ANCHORS_FILE).read_bytes() == secure_web.authority.anchors


def test_server_for_which_the_anchors_do_not_vouch(secure_web: ToyFleet, store: Store) -> None:
    secure_web.authority.serve_as(issuer=Issuer("toy servers"))
    with pytest.raises(EnrolmentFailed, match=r"not shown the token.*anchors do not vouch"):
        join(store, secure_web)
    assert secure_web.posts == 0


def test_server_with_a_certificate_for_another_address(secure_web: ToyFleet, store: Store) -> None:
    secure_web.authority.serve_as("192.0.2.1")
    with pytest.raises(EnrolmentFailed, match="another name"):
        join(store, secure_web)
    assert secure_web.posts == 0


@pytest.mark.parametrize("ago", [LIFE + timedelta(hours=1), -timedelta(days=1)])
def test_server_whose_certificate_is_not_of_today(
    secure_web: ToyFleet, store: Store, ago: timedelta
) -> None:
    secure_web.authority.serve_as(ago=ago)
    with pytest.raises(EnrolmentFailed, match="set the clock"):
        join(store, secure_web)
    assert secure_web.posts == 0


def test_server_that_publishes_no_anchors(
    secure_web: ToyFleet, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secure_web, "catalogue", secure_web.new_catalogue("bare"))
    with pytest.raises(EnrolmentFailed, match=r"anchors\.pem"):
        join(store, secure_web)
    assert secure_web.posts == 0


@pytest.mark.parametrize("anchors", [b"", b"no certificates", b"\xff"])
def test_anchors_that_are_none(secure_web: ToyFleet, store: Store, anchors: bytes) -> None:
    secure_web.catalogue.publish_document("anchors.pem", anchors)
    with pytest.raises(EnrolmentFailed, match="of no use"):
        join(store, secure_web)
    assert secure_web.posts == 0


def test_certificate_for_somebody_else(
    secure_web: ToyFleet, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = secure_web.authority.certify
    monkeypatch.setattr(secure_web.authority, "certify", lambda csr: honest(csr, "device-2"))
    with pytest.raises(EnrolmentFailed, match="device-2"):
        join(store, secure_web)


def test_answer_that_was_lost_is_asked_for_with_the_same_key(
    secure_web: ToyFleet, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = list[str]()
    honest = secure_web.enrolment_answer

    def answer(body: bytes) -> tuple[int, bytes]:
        request = codec.decode_json(body, EnrolmentRequest, limit_bytes=1 << 20)
        keys.append(secure_web.authority.certify(request.csr))
        return (503, b"{}") if len(keys) == 1 else honest(body)

    monkeypatch.setattr(secure_web, "enrolment_answer", answer)
    with pytest.raises(EnrolmentFailed):
        join(store, secure_web)
    waiting = (store.folder / NEXT_KEY_FILE).read_bytes()
    join(store, secure_web)
    assert waiting in (store.folder / "device.pem").read_bytes()
    assert not (store.folder / NEXT_KEY_FILE).exists()
