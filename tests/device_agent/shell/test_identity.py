"""First contact: a device believes only the server that its token was made for."""

import json
import stat
from collections.abc import Callable

import pytest

from device_agent.errors import EnrolmentFailed, NotEnrolled
from device_agent.shell.certificate import NEXT_KEY_FILE, PAIR_FILE
from device_agent.shell.clock import SystemClock
from device_agent.shell.identity import FILE_NAME, enrol, load_identity
from device_agent.shell.store import Store
from fleet_contract.manifest import Capabilities
from fleet_contract.trust.keyset import KEYSET_PATH
from tests.device_agent.shell.toy_fleet import DEVICE, ToyFleet

CAPABILITIES = Capabilities({"onnxruntime": "1.31.1"}, "x86_64", 26, 13, 1 << 30)


def join(store: Store, token: str, name: str = DEVICE) -> None:
    enrol(store, token, name, CAPABILITIES, SystemClock())


def changed(web: ToyFleet, **fields: object) -> Callable[[bytes], tuple[int, bytes]]:
    honest = web.enrolment_answer

    def answer(request: bytes) -> tuple[int, bytes]:
        status, body = honest(request)
        return status, json.dumps({**json.loads(body), **fields}).encode()

    return answer


def nothing_stored(store: Store) -> None:
    with pytest.raises(NotEnrolled):
        load_identity(store)
    assert store.load_record() is None


def test_enrolment_leaves_a_secret_identity_and_a_first_record(web: ToyFleet, store: Store) -> None:
    join(store, web.token())
    identity = load_identity(store)
    assert (identity.device, identity.fleet, identity.server) == (DEVICE, "home", web.url)
    for name in (FILE_NAME, PAIR_FILE):
        assert stat.S_IMODE((store.folder / name).stat().st_mode) == 0o600
    assert not (store.folder / NEXT_KEY_FILE).exists()
    record = store.load_record()
    assert record is not None
    assert record.keyset.generation == 1


def spent(web: ToyFleet) -> bool:
    return web.posts > 0


def test_server_with_another_root(web: ToyFleet, store: Store) -> None:
    token = web.token()
    web.catalogue = web.new_catalogue("other")
    with pytest.raises(EnrolmentFailed, match="no such root"):
        join(store, token)
    nothing_stored(store)
    assert not spent(web)


def test_server_that_shows_another_root_under_the_hash_of_the_token(
    web: ToyFleet, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, other = web.token(), web.new_catalogue("other")
    monkeypatch.setattr(web, "catalogue", other)
    monkeypatch.setattr(other, "root_by_digest", lambda _: other.read("1.root.json"))
    with pytest.raises(EnrolmentFailed, match="wrong_hash"):
        join(store, token)
    nothing_stored(store)
    assert not spent(web)


def test_token_older_than_the_root_of_today(web: ToyFleet, store: Store) -> None:
    token = web.token()
    web.ahead_ms = 300 * 86_400_000
    web.catalogue.renew()
    assert web.catalogue.versions()["root"] == 2
    join(store, token)
    assert load_identity(store).device == DEVICE


def test_server_of_another_fleet(
    web: ToyFleet, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "enrolment_answer", changed(web, fleet="other"))
    with pytest.raises(EnrolmentFailed, match="fleet other"):
        join(store, web.token())
    nothing_stored(store)


def test_keyset_that_the_metadata_does_not_vouch_for(
    web: ToyFleet, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = web.keyset(generation=2)
    assert len(foreign) == len(web.keyset())
    monkeypatch.setattr(web.catalogue, "read_target", lambda _: foreign)
    with pytest.raises(EnrolmentFailed, match="wrong_hash"):
        join(store, web.token())
    nothing_stored(store)
    assert not spent(web)


def test_keyset_of_another_fleet(web: ToyFleet, store: Store) -> None:
    web.catalogue.publish_document(KEYSET_PATH, web.keyset(fleet="other"))
    with pytest.raises(EnrolmentFailed, match="wrong_audience"):
        join(store, web.token())
    nothing_stored(store)
    assert not spent(web)


def test_second_enrolment_that_fails_leaves_the_first(
    web: ToyFleet, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    join(store, web.token())
    root = (store.folder / "metadata" / "root.json").read_bytes()
    web.catalogue = web.new_catalogue("other")
    monkeypatch.setattr(web, "enrolment_answer", lambda _: (403, b"{}"))
    with pytest.raises(EnrolmentFailed):
        join(store, web.token())
    assert load_identity(store).device == DEVICE
    assert (store.folder / "metadata" / "root.json").read_bytes() == root


def test_refusal_says_what_the_server_said(
    web: ToyFleet, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps({"detail": "The token is spent.", "advice": "Ask for another."}).encode()
    monkeypatch.setattr(web, "enrolment_answer", lambda _: (403, body))
    with pytest.raises(EnrolmentFailed, match=r"403.*spent.*another"):
        join(store, web.token())
    nothing_stored(store)


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"{}", b"x" * 1_000_000])
def test_answer_that_is_none(
    web: ToyFleet, store: Store, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr(web, "enrolment_answer", lambda _: (201, body))
    with pytest.raises(EnrolmentFailed):
        join(store, web.token())
    nothing_stored(store)


@pytest.mark.parametrize("token", ["", "no token", "e30", "ü", "A" * 5000])
def test_token_that_is_none(store: Store, token: str) -> None:
    with pytest.raises(EnrolmentFailed, match="token"):
        join(store, token)


@pytest.mark.parametrize(
    "server", ["", "ftp://x", "http://", "http://127.0.0.1:1", "http://[", "x"]
)
def test_server_that_cannot_be_reached(web: ToyFleet, store: Store, server: str) -> None:
    with pytest.raises(EnrolmentFailed):
        join(store, web.token(server=server))


@pytest.mark.parametrize("name", ["", "Device", "a/b", "-x-", "x" * 64, "a\n"])
def test_name_that_is_not_allowed_spends_no_token(web: ToyFleet, store: Store, name: str) -> None:
    with pytest.raises(EnrolmentFailed):
        join(store, web.token(), name)
    assert web.requests == []


def test_damaged_identity_says_what_to_do(web: ToyFleet, store: Store) -> None:
    join(store, web.token())
    (store.folder / FILE_NAME).write_bytes(b"{")
    with pytest.raises(NotEnrolled, match="new token"):
        load_identity(store)
