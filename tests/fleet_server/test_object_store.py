"""Guards what is believed of an object store's answers, by a server that answers as it is told.

How real ones answer is in test_object_store_s3.py, for whoever has one; these are the answers that
they give seldom.
"""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fleet_server import object_store
from fleet_server.errors import Unavailable
from fleet_server.object_store import ObjectStore, open_object_store

Reply = tuple[int, str]
DENIED = "<Error><Code>AccessDenied</Code><Message>secret</Message></Error>"
NO_BUCKET = "<Error><Code>NoSuchBucket</Code></Error>"


class Script:
    """Gives its replies in turn, the last one for ever, and keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.replies: list[Reply] = []

    def next(self, asked: str) -> Reply:
        self.asked.append(asked)
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, use_s3: Callable[[str], None]) -> Iterator[Script]:
    scripted = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = scripted.next(f"{self.command} {self.path}")
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", '"etag"')
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    use_s3(f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(object_store, "_PAUSE", timedelta(milliseconds=1))
    monkeypatch.setattr(object_store, "_LONGEST_PAUSE", timedelta(milliseconds=2))
    yield scripted
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def objects(script: Script) -> ObjectStore:
    opened = open_object_store("s3://models/fleet")
    assert opened is not None
    return opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"weights")
    return path


def page(keys: list[str], token: str = "") -> Reply:
    listed = "".join(
        f"<Contents><Key>fleet/{key}</Key><Size>7</Size>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for key in keys
    )
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    cut = str(bool(token)).lower()
    return 200, (
        f"<ListBucketResult><IsTruncated>{cut}</IsTruncated>{more}{listed}</ListBucketResult>"
    )


def test_listing_has_all_pages(script: Script, objects: ObjectStore) -> None:
    script.replies = [page(["a/1", "a/2"], "next"), page(["a/3"])]
    assert objects.sizes("a") == {"a/1": 7, "a/2": 7, "a/3": 7}
    assert "continuation-token=next" in script.asked[1]


def test_listing_that_fails_on_a_later_page_is_none(script: Script, objects: ObjectStore) -> None:
    script.replies = [page(["a/1"], "next"), (403, DENIED)]
    with pytest.raises(Unavailable, match="listed: AccessDenied"):
        objects.sizes("a")


def test_what_was_not_removed_inside_an_answer_that_is_well(
    script: Script, objects: ObjectStore
) -> None:
    denied = "<Error><Key>fleet/a</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
    script.replies = [(200, f"<DeleteResult>{denied}</DeleteResult>")]
    with pytest.raises(Unavailable):
        objects.remove("a")


def test_bucket_that_is_not_there_is_no_object_that_went(
    script: Script, objects: ObjectStore, file: Path
) -> None:
    script.replies = [(404, NO_BUCKET)]
    for act in (lambda: objects.remove("a"), lambda: objects.put("a", file)):
        with pytest.raises(Unavailable, match="NoSuchBucket"):
            act()


def test_put_that_fails_inside_an_answer_that_is_well(
    script: Script, objects: ObjectStore, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(6_000_000))
    begun = "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
    failed = "<Error><Code>InternalError</Code><Message>again</Message></Error>"
    script.replies = [(200, begun), (200, ""), (200, ""), (200, failed)]
    with pytest.raises(Unavailable):
        objects.put("a", large)


def test_what_fails_for_a_moment_is_tried_again(
    script: Script, objects: ObjectStore, file: Path
) -> None:
    script.replies = [*[(503, "")] * object_store.RETRIES, (200, "")]
    objects.put("a", file)
    assert script.asked == ["PUT /models/fleet/a"] * (object_store.RETRIES + 1)


def test_refusal_is_said_in_the_words_of_the_store_and_no_others(
    script: Script, objects: ObjectStore, file: Path
) -> None:
    script.replies = [(403, DENIED)]
    with pytest.raises(Unavailable) as caught:
        objects.put("a", file)
    assert caught.value.detail == "An object could not be put: AccessDenied."
    assert len(script.asked) == 1
