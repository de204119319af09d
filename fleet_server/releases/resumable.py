"""Uploads in pieces: files that arrive over several connections, until they are whole and checked.

Decides what is on disk of an unfinished file, who may go on with it, how much one operator may have
under way, and when it is swept. The folder alone says how far an upload is: its offset is the
length of the file, so there is nothing that a crash could make disagree. Whole is only what has
all its bytes, on disk, with the digest that was announced; it gets its name then, and never before.
What is made of a whole file is decided where releases are pushed.
"""

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fleet_contract import codec
from fleet_contract.errors import Refused
from fleet_server.errors import Conflict, Invalid, NotFound, TooLarge, TooManyAttempts
from fleet_server.releases import limits
from fleet_server.releases.partial import PLAN_BYTES, Claimed, Plan, View
from fleet_server.releases.room import check_room, free_bytes, room
from fleet_server.releases.store import sync_folder
from fleet_server.releases.uploads import ALL_FILES, MODELS

EXPIRY_MS = 24 * 3_600_000
"""Since the last byte: long enough for a line that is down over night."""
MOST_UPLOADS = 16
"""Of one operator at a time; a release has up to nine files."""
_PLAN, _PART, _WHOLE, _FRESH = "plan.json", "part", "whole", "fresh-"
_ID = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(slots=True)
class _Held:
    """An upload on disk. ``turn`` counts who came last: an older append may not write any more."""

    plan: Plan
    folder: Path
    turn: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def part(self) -> Path:
        return self.folder / _PART

    @property
    def whole(self) -> Path:
        return self.folder / _WHOLE

    def view(self) -> View:
        try:
            status, is_whole = self.part.stat(), False
        except FileNotFoundError:
            # It may become whole while this looks: the bytes are the same.
            status, is_whole = self.whole.stat(), True
        plan = self.plan
        return View(
            plan.id,
            plan.owner,
            plan.field,
            plan.size_bytes,
            plan.sha256,
            status.st_size,
            is_whole,
            max(plan.begun_ms, status.st_mtime_ns // 1_000_000) + EXPIRY_MS,
        )


class ResumableUploads:
    """The uploads below one folder, which belongs to this process alone. Thread-safe.

    Args:
        folder: is made if need be; on the file system of the folder of incoming releases.
        most_bytes: that the uploads of one operator may have together, as announced.
        free: how much room a folder's disk has.
    """

    def __init__(
        self, folder: Path, *, most_bytes: int, free: Callable[[Path], int] = free_bytes
    ) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._free = free
        self._guard = threading.Lock()
        self._held: dict[str, _Held] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for place in folder.iterdir():
            plan = _read_plan(place)
            if plan is None:
                # Half begun, or half dropped, when the server was killed.
                shutil.rmtree(place, ignore_errors=True)
            else:
                self._held[plan.id] = _Held(plan, place)

    def begin(
        self, owner: str, field: str, size_bytes: int, sha256: str, *, upload_id: str, now_ms: int
    ) -> tuple[View, bool]:
        """Begin an upload, or find the owner's own of the same file.

        Args:
            owner: the operator.
            field: which file of a release it is to be, one of ``ALL_FILES``.
            size_bytes: of the file.
            sha256: of the file, in hexadecimal.
            upload_id: of a new upload: 32 random hexadecimal digits.
            now_ms: the server's time.

        Returns:
            The upload, and whether it was begun now.

        Raises:
            Invalid: if a release has no such file.
            TooLarge: if it may not be as large.
            TooManyAttempts: if the owner has too many uploads, or too many bytes in them.
            Full: if the disk has no room for it.
        """
        if field not in ALL_FILES:
            raise Invalid(
                "bad_field", "A release has no such file.", f"It has {', '.join(ALL_FILES)}."
            )
        limit_bytes = limits.MODEL_BYTES if field in MODELS else limits.ARRAYS_BYTES
        if size_bytes > limit_bytes:
            raise TooLarge(
                "field_too_large",
                f"The file {field!r} would have more than {limit_bytes} bytes.",
                "Send fewer examples; models for devices are smaller, too.",
            )
        with self._guard:
            own = [held.plan for held in self._held.values() if held.plan.owner == owner]
            for plan in own:
                if (plan.field, plan.size_bytes, plan.sha256) == (field, size_bytes, sha256):
                    held = self._held[plan.id]
                    with held.lock:
                        held.turn += 1
                        return held.view(), False
            if (
                len(own) >= MOST_UPLOADS
                or sum(plan.size_bytes for plan in own) + size_bytes > self._most_bytes
            ):
                raise TooManyAttempts(
                    "too_many_uploads",
                    f"You have {len(own)} uploads that no release was made of; with this one "
                    f"they would be above {MOST_UPLOADS} or {self._most_bytes} bytes.",
                    "Finish or drop some, by edgefleet model uploads or DELETE /v1/uploads/ID; "
                    "they expire after a day.",
                )
            views = [held.view() for held in self._held.values()]
            promised = sum(view.size_bytes - view.offset_bytes for view in views)
            check_room(self._folder, promised + size_bytes, self._free)
            held = _Held(
                Plan(upload_id, owner, field, size_bytes, sha256, now_ms), self._folder / upload_id
            )
            with room():
                _lay_down(held)
            self._held[upload_id] = held
            return held.view(), True

    def view(self, owner: str, upload_id: str) -> View:
        """Return how far an upload is, for good: an append that is under way ends before.

        Raises:
            NotFound: if the owner has no such upload.
        """
        with self._locked(owner, upload_id) as held:
            held.turn += 1
            return held.view()

    def of(self, owner: str) -> list[View]:
        """Return an operator's uploads, the oldest first."""
        with self._guard:
            own = [held for held in self._held.values() if held.plan.owner == owner]
            return [held.view() for held in sorted(own, key=lambda held: held.plan.begun_ms)]

    @contextmanager
    def appending(
        self, owner: str, upload_id: str, offset_bytes: int
    ) -> Iterator[Callable[[bytes], None]]:
        """Open an upload; yields what writes the next bytes, each call straight to the file.

        However the block ends, what was written stays, is on disk, and counts.

        Raises:
            NotFound: if the owner has no such upload.
            Conflict: ``wrong_offset`` if it is not that far, ``upload_complete``; when writing,
                ``upload_taken_over`` once somebody else goes on with it.
            TooLarge: when writing, beyond the announced size; those bytes are not written.
            Full: when writing, if the disk has no room.
        """
        with self._locked(owner, upload_id) as held:
            view = held.view()
            if view.complete:
                raise Conflict("upload_complete", "This upload is complete.", "Push a release.")
            if offset_bytes != view.offset_bytes:
                raise Conflict(
                    "wrong_offset",
                    f"The upload has {view.offset_bytes} bytes; these begin at {offset_bytes}.",
                    "Ask by HEAD how far it is, and go on from there.",
                )
            held.turn += 1
            turn = held.turn
            handle = os.open(held.part, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        written = offset_bytes

        def write(data: bytes) -> None:
            nonlocal written
            with held.lock:
                if held.turn != turn:
                    raise Conflict("upload_taken_over", "Another request goes on with this upload.")
                if written + len(data) > held.plan.size_bytes:
                    raise TooLarge(
                        "upload_too_long",
                        f"The upload was announced with {held.plan.size_bytes} bytes.",
                        "Begin another one if the file has changed.",
                    )
                check_room(held.folder, len(data), self._free)
                rest = memoryview(data)
                with room():
                    while rest:
                        count = os.write(handle, rest)
                        written += count
                        rest = rest[count:]

        try:
            yield write
        finally:
            try:
                with room():
                    os.fsync(handle)
            finally:
                os.close(handle)

    def finish(self, owner: str, upload_id: str) -> View:
        """Check an upload that has all its bytes, and make it whole; do nothing to a shorter one.

        Raises:
            NotFound: if the owner has no such upload.
            Invalid: if its digest is not the announced one; then it is dropped.
        """
        with self._locked(owner, upload_id) as held:
            view = held.view()
            if view.complete or view.offset_bytes < view.size_bytes:
                return view
            with held.part.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found == held.plan.sha256:
                held.part.rename(held.whole)
                sync_folder(held.folder)
                return held.view()
        self.drop(owner, upload_id)
        raise Invalid(
            "digest_mismatch",
            f"The bytes have the SHA-256 {found}, announced was {view.sha256}.",
            "The file changed meanwhile, or what was sent was damaged. Push it again.",
        )

    def drop(self, owner: str, upload_id: str) -> View:
        """Remove an upload and return what it was.

        Raises:
            NotFound: if the owner has no such upload.
        """
        with self._guard, self._locked(owner, upload_id) as held:
            del self._held[upload_id]
            view = held.view()
            held.turn += 1
            # By another name first: a plan without its bytes must not be found after a crash.
            gone = self._folder / f"{_FRESH}{upload_id}"
            held.folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
            return view

    def claim(self, owner: str, upload_id: str, field: str, target: Path) -> Claimed:
        """Give a whole upload a second name in the folder of a release.

        Raises:
            NotFound: if the owner has no such upload.
            Invalid: if it is for another field.
            Conflict: if it is not complete.
        """
        with self._locked(owner, upload_id) as held:
            if held.plan.field != field:
                raise Invalid(
                    "wrong_field",
                    f"That upload is for {held.plan.field!r}, not for {field!r}.",
                    "Begin one for this field.",
                )
            if not held.whole.exists():
                raise Conflict(
                    "upload_incomplete",
                    f"The upload of {field!r} is not complete.",
                    "Ask by HEAD how far it is, and send the rest.",
                )
            target.hardlink_to(held.whole)
            return Claimed(upload_id, held.plan.size_bytes, held.plan.sha256)

    def sweep(self, now_ms: int) -> list[View]:
        """Drop what nobody sent a byte of for a day, and return it."""
        with self._guard:
            old = [held.plan for held in self._held.values() if held.view().expires_ms <= now_ms]
        dropped = []
        for plan in old:
            try:
                dropped.append(self.drop(plan.owner, plan.id))
            except NotFound:
                continue  # its owner was faster
        return dropped

    @contextmanager
    def _locked(self, owner: str, upload_id: str) -> Iterator[_Held]:
        held = self._held.get(upload_id)
        # Somebody else's is answered as one that does not exist.
        if held is None or held.plan.owner != owner:
            raise _unknown()
        with held.lock:
            if self._held.get(upload_id) is not held:
                raise _unknown()  # dropped while this waited
            yield held


def _lay_down(held: _Held) -> None:
    """Put a new upload on disk; it appears under its name when it can be gone on with."""
    fresh = held.folder.with_name(f"{_FRESH}{held.plan.id}")
    try:
        fresh.mkdir(mode=0o700)
        for name, data in ((_PLAN, codec.encode_json(held.plan)), (_PART, b"")):
            with (fresh / name).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(fresh)
        fresh.rename(held.folder)
        sync_folder(held.folder.parent)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _read_plan(folder: Path) -> Plan | None:
    if not _ID.match(folder.name):
        return None
    try:
        with (folder / _PLAN).open("rb") as file:
            data = file.read(PLAN_BYTES + 1)
        plan = codec.decode_json(data, Plan, limit_bytes=PLAN_BYTES)
    except (OSError, Refused):
        return None
    has_bytes = (folder / _PART).is_file() or (folder / _WHOLE).is_file()
    return plan if plan.id == folder.name and plan.field in ALL_FILES and has_bytes else None


def _unknown() -> NotFound:
    return NotFound(
        "no_such_upload",
        "You have no such upload: it was used, dropped, or expired.",
        "Run the same command again; by the API, begin it again: POST /v1/uploads.",
    )
