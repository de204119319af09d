"""Sends the files of a release: small ones with the form, large ones before it, in pieces.

Decides which files go in pieces, how a broken connection is gone on with, and when that is given
up. A command that was killed is gone on with by the same command: the server knows an upload by the
digest of its file. If the answer to the form is lost, the release is asked for before the form is
sent again.
"""

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fleet_server.command_line.connection import Connection, NoConnection, may_pass
from fleet_server.command_line.output import CommandError, mib

LARGE_BYTES = 4 * 1024**2
"""From this size on a file goes in pieces: below, sending it again costs less than asking."""
PIECE_BYTES = 32 * 1024**2
"""Of one request; what a power cut of the server can take back is less than that."""
CHUNK_BYTES = 256 * 1024
TIMEOUT_S = 600.0
WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Before each attempt after a failure; any byte that arrives begins the row again."""
_GO_ON = "What has arrived is kept for a day: run the same command again to go on."
_NO_PIECES = ("signature",)


class _Counted(io.FileIO):
    """A file that says how much of it was read."""

    def __init__(self, path: Path, on_read: Callable[[int], object]) -> None:
        super().__init__(path)
        self._on_read = on_read

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self._on_read(len(data))
        return data


def send_release(
    connection: Connection,
    name: str,
    fields: dict[str, str],
    paths: dict[str, Path],
    console: Console,
    *,
    large_bytes: int = LARGE_BYTES,
    sleep: Callable[[float], None] = time.sleep,
) -> Any:
    """Send a release and return what the server says of it.

    Args:
        connection: to the server.
        name: of the model.
        fields: text fields of the form.
        paths: field → file.
        console: for the progress.
        large_bytes: from which size on a file goes in pieces.
        sleep: waits so many seconds.

    Raises:
        CommandError: if the server refuses, or stays away.
    """
    sizes = {field: path.stat().st_size for field, path in paths.items()}
    large = [field for field in paths if sizes[field] >= large_bytes and field not in _NO_PIECES]
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns,
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(f"uploading {name} {fields['version']}", total=sum(sizes.values()))
        texts = dict(fields)
        for field in large:
            before = sum(sizes[other] for other in large[: large.index(field)])

            def show(offset: int, before: int = before) -> None:
                bar.update(task, completed=before + offset)

            sender = _Sender(connection, field, paths[field], show, console, sleep)
            try:
                texts[f"{field}_upload"] = sender.send()
            except KeyboardInterrupt:
                console.print(_GO_ON)
                raise
        place = f"/v1/models/{quote(name, safe='')}/releases"
        small = {field: path for field, path in paths.items() if field not in large}

        def send_form() -> Any:
            with ExitStack() as stack:
                files = {
                    field: (
                        path.name,
                        stack.enter_context(_Counted(path, lambda n: bar.advance(task, n))),
                    )
                    for field, path in small.items()
                }
                # A form without a file would not be multipart.
                form = {**{key: (None, text) for key, text in texts.items()}, **files}
                return connection.call("POST", place, files=form, timeout=TIMEOUT_S)

        return _send_until_answered(
            send_form,
            lambda: _arrived(connection, f"{place}/{fields['version']}", paths["model"]),
            lambda error, wait_s: console.print(
                f"{error.detail} Trying again in {wait_s:.0f} s.", highlight=False
            ),
            sleep,
            reached=bool(large),
        )


def _send_until_answered(
    send: Callable[[], Any],
    arrived: Callable[[], Any],
    say: Callable[[CommandError, float], object],
    sleep: Callable[[float], None],
    *,
    reached: bool,
) -> Any:
    """Return the release that was sent: a lost answer is no reason to believe that it is not there.

    Since a version never changes, it can be asked for, and sent once more if it did not arrive. A
    server that was never ``reached`` is not waited for: there may be none.
    """
    for wait_s in WAITS_S:
        try:
            return send()
        except CommandError as error:
            if not may_pass(error) or (isinstance(error, NoConnection) and not reached):
                raise
            reached = True
            say(error, wait_s)
        sleep(wait_s)
        with suppress(CommandError):
            if (found := arrived()) is not None:
                return found
    return send()


def _arrived(connection: Connection, place: str, model: Path) -> Any:
    """Return the release there, if it was made of this model and is not refused; else None."""
    try:
        release = connection.get(place)
    except CommandError as error:
        if (error.problem or {}).get("status") == 404:
            return None
        raise
    with model.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    same = release["source_digest"] == digest and release["state"] != "refused"
    return release if same else None


class _Sender:
    """Sends one file in pieces and does not give up at the first broken connection."""

    def __init__(
        self,
        connection: Connection,
        field: str,
        path: Path,
        show: Callable[[int], None],
        console: Console,
        sleep: Callable[[float], None],
    ) -> None:
        self._connection = connection
        self._field = field
        self._path = path
        self._show = show
        self._console = console
        self._sleep = sleep
        self._size_bytes = path.stat().st_size

    def send(self) -> str:
        """Send what the server has not yet, and return the upload's id once it is complete."""
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        best, failures, place = -1, 0, ""
        while True:
            offset = max(best, 0)
            try:
                if not place:
                    place, offset, complete = self._begin(digest)
                else:
                    offset, complete = _progress(self._connection.send("HEAD", place))
                self._show(offset)
                while not complete:
                    if offset > best:
                        best, failures = offset, 0
                    offset, complete = self._append(place, offset)
                    self._show(offset)
                return place.rsplit("/", 1)[1]
            except CommandError as error:
                if not _is_worth_trying(error):
                    raise
                if failures >= len(WAITS_S):
                    raise CommandError(error.detail, f"{error.advice} {_GO_ON}") from error
                self._say(error, offset, WAITS_S[failures])
                self._sleep(WAITS_S[failures])
                failures += 1

    def _begin(self, digest: str) -> tuple[str, int, bool]:
        body = {"field": self._field, "size_bytes": self._size_bytes, "sha256": digest}
        answer = self._connection.send("POST", "/v1/uploads", json=body)
        offset, complete = _progress(answer)
        if offset:
            self._console.print(
                f"{self._field}: {mib(offset)} of {mib(self._size_bytes)} MiB were there already",
                highlight=False,
            )
        return f"/v1/uploads/{answer.json()['id']}", offset, complete

    def _append(self, place: str, offset: int) -> tuple[int, bool]:
        length = min(PIECE_BYTES, self._size_bytes - offset)
        answer = self._connection.send(
            "PATCH",
            place,
            content=self._read(offset, length),
            headers={
                "Content-Type": "application/partial-upload",
                "Content-Length": str(length),
                "Upload-Offset": str(offset),
            },
            timeout=TIMEOUT_S,
        )
        return _progress(answer)

    def _read(self, offset: int, length: int) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            file.seek(offset)
            while length:
                data = file.read(min(CHUNK_BYTES, length))
                if not data:
                    raise CommandError(f"{self._path} became shorter while it was sent.")
                length -= len(data)
                offset += len(data)
                yield data
                self._show(offset)

    def _say(self, error: CommandError, offset: int, wait_s: float) -> None:
        self._console.print(
            f"{self._field}: broken off at {mib(offset)} of {mib(self._size_bytes)} MiB: "
            f"{error.detail} Trying again in {wait_s:.0f} s.",
            highlight=False,
        )


def _progress(answer: httpx.Response) -> tuple[int, bool]:
    try:
        offset = int(answer.headers["Upload-Offset"])
    except (KeyError, ValueError) as error:
        raise CommandError(
            "The server does not say how far the upload is.",
            "Is this address really that of an edgefleet server? Check --url.",
        ) from error
    return offset, answer.headers.get("Upload-Complete") == "?1"


def _is_worth_trying(error: CommandError) -> bool:
    kind = str((error.problem or {}).get("type", "")).rsplit(":", 1)[-1]
    if kind == "too_many_uploads":
        return False  # not before somebody drops one
    return may_pass(error) or kind in ("wrong_offset", "upload_complete", "upload_taken_over")
