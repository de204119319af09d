"""Guards from being led astray: to foreign places, to wrong bytes, and with anything to show."""

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.errors import StartFailed, StepFailed
from device_agent.shell.clock import SystemClock
from device_agent.shell.daemon import Daemon
from device_agent.shell.download import Wanted, download
from device_agent.shell.following import Origins, system_tls
from device_agent.shell.http_source import HttpFailure, HttpSource
from device_agent.shell.identity import enrol
from device_agent.shell.store import Store
from device_agent.shell.tls import anchored
from device_agent.shell.workshop import Workshop
from fleet_contract.errors import Reason
from fleet_contract.manifest import artifact_path
from tests.device_agent.shell.toy_fleet import DEVICE, MODEL, ToyFleet
from tests.device_agent.shell.toy_web import Handler

DATA = os.urandom(400_000)
SIGNED = "X-Amz-Signature=a%2Bb/c==&X-Amz-Expires=300"
TICKS = SystemClock().ticks_ns


def never() -> bool:
    return False


@pytest.fixture
def bucket() -> Iterator[ToyFleet]:
    """Another server on this machine, which asks nobody who they are."""
    fleet = ToyFleet(with_broker=False)
    yield fleet
    fleet.close()


@pytest.fixture
def secure_bucket() -> Iterator[ToyFleet]:
    fleet = ToyFleet(with_broker=False, secure=True)
    yield fleet
    fleet.close()


def source_of(web: ToyFleet, *origins: str) -> HttpSource:
    leads = Origins(origins, ticks_ns=TICKS).find if origins else None
    return HttpSource(f"{web.url}/v1/store", ticks_ns=TICKS, leads=leads)


def put(web: ToyFleet, bucket: ToyFleet, data: bytes = DATA) -> Wanted:
    """A file that both have; the server leads whoever follows to the bucket."""
    file = web.put_file(data)
    address = artifact_path(MODEL, file.digest)
    bucket.files[f"{address}?{SIGNED}"] = data
    lead(web, address, f"{bucket.url}/v1/store/{address}?{SIGNED}")
    return Wanted(file.digest, file.size_bytes, address, {"sha256": file.digest})


def lead(web: ToyFleet, address: str, where: str) -> None:
    def leads(handler: Handler) -> bool:
        if handler.headers.get("X-Edgefleet-Follow") != "1":
            return False
        handler.answer(307, b"", {"Location": where, "Cache-Control": "no-store"})
        return True

    web.misbehave[address] = leads


def came(store: Store, file: Wanted) -> bool:
    return store.artifact(file.digest).read_bytes() == DATA


def test_file_comes_from_where_the_server_leads(
    web: ToyFleet, bucket: ToyFleet, store: Store
) -> None:
    file = put(web, bucket)
    shown: list[dict[str, str]] = []

    def look(handler: Handler) -> bool:
        shown.append(dict(handler.headers))
        return False

    bucket.misbehave[f"{file.address}?{SIGNED}"] = look
    download(source_of(web, bucket.url), store, file, never)
    assert came(store, file)
    assert bucket.requests == [(f"{file.address}?{SIGNED}", None)]
    assert web.requests == [(file.address, None)]
    assert {name.lower() for name in shown[0]} == {"host", "accept-encoding", "connection"}


def test_device_that_was_told_no_origin_never_says_that_it_follows(
    web: ToyFleet, bucket: ToyFleet, store: Store
) -> None:
    file = put(web, bucket)
    download(source_of(web), store, file, never)
    assert came(store, file)
    assert bucket.requests == []


def test_foreign_origin_is_not_asked(
    web: ToyFleet, bucket: ToyFleet, store: Store, free_port: int
) -> None:
    file = put(web, bucket)
    others = (f"http://127.0.0.1:{free_port}", "https://bucket")
    download(source_of(web, *others), store, file, never)
    assert came(store, file)
    assert bucket.requests == []


def test_partial_file_goes_on_by_range(web: ToyFleet, bucket: ToyFleet, store: Store) -> None:
    file = put(web, bucket)
    store.partial(file.digest).write_bytes(DATA[:5000])
    download(source_of(web, bucket.url), store, file, never)
    assert came(store, file)
    assert bucket.requests == [(f"{file.address}?{SIGNED}", "bytes=5000-")]


def test_connection_broken_there_goes_on_there(
    web: ToyFleet, bucket: ToyFleet, store: Store
) -> None:
    file = put(web, bucket)

    def cut(handler: Handler) -> bool:
        if handler.headers.get("Range"):
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        handler.wfile.write(DATA[:300_000])
        return True

    bucket.misbehave[f"{file.address}?{SIGNED}"] = cut
    download(source_of(web, bucket.url), store, file, never)
    assert came(store, file)
    assert [wanted for _, wanted in bucket.requests] == [None, "bytes=300000-"]
    # Each time the server was asked where: an address ends after some minutes.
    assert len(web.requests) == 2


@pytest.mark.parametrize("status", [403, 404, 416, 500])
def test_expired_or_missing_there_comes_from_the_server(
    web: ToyFleet, bucket: ToyFleet, store: Store, status: int
) -> None:
    file = put(web, bucket)

    def refuse(handler: Handler) -> bool:
        handler.answer(status, b"<Error><Code>AccessDenied</Code></Error>")
        return True

    bucket.misbehave[f"{file.address}?{SIGNED}"] = refuse
    store.partial(file.digest).write_bytes(DATA[:5000])
    download(source_of(web, bucket.url), store, file, never)
    assert came(store, file)
    assert web.requests[-1] == (file.address, "bytes=5000-")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_second_redirect_is_not_followed(
    web: ToyFleet, bucket: ToyFleet, store: Store, status: int
) -> None:
    file = put(web, bucket)

    def onward(handler: Handler) -> bool:
        handler.answer(status, b"", {"Location": f"{bucket.url}/v1/store/onward"})
        return True

    bucket.misbehave[f"{file.address}?{SIGNED}"] = onward
    download(source_of(web, bucket.url), store, file, never)
    assert came(store, file)
    assert [path for path, _ in bucket.requests] == [f"{file.address}?{SIGNED}"]


@pytest.mark.parametrize("wrong", [bytes(len(DATA)), DATA + b"more", DATA[:-1], b""])
def test_wrong_bytes_from_there_are_fetched_anew_from_the_server(
    web: ToyFleet, bucket: ToyFleet, store: Store, wrong: bytes
) -> None:
    file = put(web, bucket)
    bucket.files[f"{file.address}?{SIGNED}"] = wrong
    download(source_of(web, bucket.url), store, file, never)
    assert came(store, file)


def test_wrong_beginning_from_there_does_not_spoil_the_rest_from_the_server(
    web: ToyFleet, bucket: ToyFleet, store: Store
) -> None:
    file = put(web, bucket)

    def spoil(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        handler.wfile.write(bytes(1000))
        return True

    bucket.misbehave[f"{file.address}?{SIGNED}"] = spoil
    download(source_of(web, bucket.url), store, file, never)
    assert came(store, file)
    assert [wanted for _, wanted in web.requests] == [None, "bytes=1000-", None]


def test_wrong_bytes_from_both_are_refused(web: ToyFleet, bucket: ToyFleet, store: Store) -> None:
    file = put(web, bucket)
    bucket.files[f"{file.address}?{SIGNED}"] = web.files[file.address] = bytes(len(DATA))
    with pytest.raises(StepFailed) as caught:
        download(source_of(web, bucket.url), store, file, never)
    assert caught.value.reason is Reason.WRONG_HASH
    assert not store.artifact(file.digest).exists()
    assert not store.partial(file.digest).exists()
    assert (len(web.requests), len(bucket.requests)) == (2, 1)


def test_nobody_answers_there(
    web: ToyFleet, bucket: ToyFleet, store: Store, free_port: int
) -> None:
    file = put(web, bucket)
    where = f"http://127.0.0.1:{free_port}"
    lead(web, file.address, f"{where}/{file.address}")
    download(source_of(web, where), store, file, never)
    assert came(store, file)


def test_fleets_own_anchors_do_not_vouch_there(
    web: ToyFleet, secure_bucket: ToyFleet, store: Store
) -> None:
    file = put(web, secure_bucket)
    download(source_of(web, secure_bucket.url), store, file, never)
    assert came(store, file)
    assert secure_bucket.requests == []


def test_no_certificate_is_shown_there(
    secure_web: ToyFleet, secure_bucket: ToyFleet, tmp_path: Path, workshop: Workshop
) -> None:
    store = Store(tmp_path / "device", reserve_bytes=0)
    enrol(store, secure_web.token(), DEVICE, workshop.capabilities, SystemClock())
    file = put(secure_web, secure_bucket)
    shown: list[bytes | None] = []

    def look(handler: Handler) -> bool:
        assert isinstance(handler.connection, ssl.SSLSocket)
        shown.append(handler.connection.getpeercert(binary_form=True))
        return False

    secure_bucket.misbehave[f"{file.address}?{SIGNED}"] = look
    vouched = Origins(
        [secure_bucket.url],
        ticks_ns=TICKS,
        tls=lambda: anchored(secure_bucket.authority.anchors),
    )
    own = anchored((store.folder / "anchors.pem").read_bytes())
    own.load_cert_chain(store.folder / "device.pem")
    source = HttpSource(
        f"{secure_web.url}/v1/store", ticks_ns=TICKS, tls=lambda: own, leads=vouched.find
    )
    download(source, store, file, never)
    assert came(store, file)
    assert shown == [None]
    context = system_tls()
    assert context.check_hostname and context.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    "address",
    [
        *("", "/v1/store/x", "//bucket/x", "ftp://bucket/x", "https://bucket"),
        *("http://bucket/x", "https://bucket:8443/x", "https://bucket.example/x"),
        *("https://me@bucket/x", "https://bucket@evil/x", "https://bucket\\@evil/x"),
        *("https://bucket:x/x", "https://[bucket/x", "https://bucket/a b", "https://bucket/\u00e9"),
        *("https://bucket/x\r\nAuthorization: y", "https://bucket/" + "x" * 9000),
    ],
)
def test_address_that_leads_nowhere(address: str) -> None:
    origins = Origins(["https://bucket"], ticks_ns=TICKS)
    if address == "https://bucket":
        assert origins.find(address)[1] == "/"
        return
    with pytest.raises(HttpFailure) as caught:
        origins.find(address)
    assert "\n" not in str(caught.value)


def test_what_was_signed_is_asked_for_as_it_is() -> None:
    origins = Origins(["HTTPS://Bucket:443/"], ticks_ns=TICKS)
    _, target = origins.find("https://bucket/a%2Fb/c=d:e?sig=x%2By/z==&t=1")
    assert target == "/a%2Fb/c=d:e?sig=x%2By/z==&t=1"


@pytest.mark.parametrize(
    "origin",
    [
        *("", "bucket", "http://bucket", "https://bucket/models", "https://bucket?x"),
        *("ftp://127.0.0.1", "https://me:secret@bucket", "https://bucket:99999"),
    ],
)
def test_origin_that_is_none(
    origin: str, fleet: ToyFleet, tmp_path: Path, workshop: Workshop
) -> None:
    with pytest.raises(ValueError):
        Origins([origin], ticks_ns=TICKS)
    store = Store(tmp_path / "device")
    enrol(store, fleet.token(), DEVICE, workshop.capabilities, SystemClock())
    with pytest.raises(StartFailed, match="origins") as caught:
        Daemon(store, workshop, SystemClock(), [origin])
    assert "secret" not in str(caught.value)
