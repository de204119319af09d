"""Receives an upload: a multipart form, streamed to disk as it arrives.

Decides which files an upload has and how large each part may be; hashes the model while it is
written. A file may have come before, in pieces: then a field names that upload. Nothing stays on
disk of an upload that is refused or cut off. What the fields say is read in :mod:`.fields`; whether
the model is any good is decided later, at staging.
"""

import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import anyio.to_thread
import msgspec
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from fleet_contract import names
from fleet_server.errors import Invalid, TooLarge
from fleet_server.locations import check_location
from fleet_server.provenance.bundle import BUNDLE_BYTES
from fleet_server.releases import archives, limits
from fleet_server.releases.fields import FIELDS, check_variants, read_options, read_text
from fleet_server.releases.partial import Claimed
from fleet_server.releases.room import check_room, room
from fleet_server.releases.states import Refusal
from fleet_server.releases.store import sync_folder
from fleet_server.releases.uploads import (
    ALL_FILES,
    EVALUATION,
    FILES,
    MODELS,
    VARIANT_FILES,
    Upload,
)

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

SIGNATURE = "signature"
TEXTS = (*FIELDS, SIGNATURE)
REFERENCES = {f"{field}_upload": field for field in ALL_FILES}
"""Text field that names an upload in pieces → the file that it stands for."""
OPTIONAL_FILES = {"baseline": "calibration"}
"""A file that may be left out → the one that stands in for it."""

Claim = Callable[[str, str, Path], Claimed]
"""``claim(id, field, target)`` gives a whole upload in pieces the name of a release's file."""


async def receive(
    stream: AsyncIterator[bytes],
    content_type: str,
    *,
    model: str,
    allowed_locations: Sequence[str] = (),
    incoming: Path,
    name: str,
    claim: Claim,
) -> Upload:
    """Write an upload to a new folder and return what it is.

    Args:
        stream: the request's body; bounded as a whole by the caller.
        content_type: of the request.
        model: the model's name, from the path.
        allowed_locations: how a location of the metadata may begin.
        incoming: where uploads are kept.
        name: of the new folder, random.
        claim: for the files that came before, in pieces.

    Raises:
        Full: if the disk has no room for it.
        Invalid: if a field or a file is missing, unknown, doubled or not of its form.
        TooLarge: if a field or file is larger than its limit.
        InvalidName: for a model or version that is not allowed.
    """
    names.check_model(model)
    boundary = _boundary(content_type)
    folder = incoming / name
    form = _Form(folder)
    try:
        with room():
            folder.mkdir(mode=0o700)
        parser = MultipartParser(boundary, form.callbacks(), max_header_count=8)
        async for chunk in stream:
            # Off the event loop: the disk may be slower than the network.
            check_room(folder, len(chunk))
            with room():
                await anyio.to_thread.run_sync(parser.write, chunk)
        with room():
            upload = await anyio.to_thread.run_sync(_finish, form, parser, model, folder, claim)
        for what, where in upload.options.metadata.locations:
            check_location(where, allowed_locations, what)
        return upload
    except BaseException as error:
        form.abandon()
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, FormParserError):
            raise _malformed() from error
        if isinstance(error, Refusal):
            problem = error.problem
            raise Invalid(problem.code, problem.detail, problem.advice) from error
        raise


def _boundary(content_type: str) -> bytes:
    kind, parameters = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not parameters.get(b"boundary"):
        raise Invalid(
            "not_multipart",
            "An upload is a multipart/form-data request.",
            "Use edgefleet model push, or curl with -F for each field.",
        )
    return parameters[b"boundary"]


class _Form:
    """Takes the parser's events, part by part."""

    def __init__(self, folder: Path) -> None:
        self.texts: dict[str, bytearray] = {}
        self.sizes: dict[str, int] = {}
        self.hashers = {name: hashlib.sha256() for name in MODELS}
        self._folder = folder
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._part = ""
        self._file: BinaryIO | None = None
        self.ended = False

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": self._take,
            "on_part_end": self.close,
            "on_end": self._end,
        }

    def close(self) -> None:
        """Close the file of the present part, if it is one, with its bytes safely on disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def abandon(self) -> None:
        """Close the file of the present part; what is in it does not matter any more."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _begin(self) -> None:
        self._disposition = b""

    def _end(self) -> None:
        self.ended = True

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._part = options.get(b"name", b"").decode("utf-8", "replace")
        known = {*TEXTS, *ALL_FILES, *REFERENCES}
        if self._part not in known or self._part in {*self.texts, *self.sizes}:
            raise Invalid(
                "bad_field",
                f"The field {self._part[:40]!r} is unknown or there twice.",
                f"Fields are {', '.join([*TEXTS, *ALL_FILES, *REFERENCES])}.",
            )
        if self._part in ALL_FILES:
            # The name on disk is ours; what the client calls the file is not looked at.
            self._file = (self._folder / ALL_FILES[self._part]).open("xb")
            self.sizes[self._part] = 0
        else:
            self.texts[self._part] = bytearray()

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._file is None:
            text = self.texts[self._part]
            is_signature = self._part == SIGNATURE
            limit_bytes = BUNDLE_BYTES if is_signature else limits.FIELD_BYTES
            self._bound(len(text) + end - start, limit_bytes)
            text.extend(data[start:end])
            return
        self.sizes[self._part] += end - start
        is_model = self._part in self.hashers
        self._bound(self.sizes[self._part], limits.MODEL_BYTES if is_model else limits.ARRAYS_BYTES)
        if is_model:
            self.hashers[self._part].update(data[start:end])
        self._file.write(data[start:end])

    def _bound(self, size_bytes: int, limit_bytes: int) -> None:
        if size_bytes > limit_bytes:
            raise TooLarge(
                "field_too_large",
                f"The field {self._part!r} has more than {limit_bytes} bytes.",
                "Send fewer examples; models for devices are smaller, too.",
            )


def _finish(form: _Form, parser: MultipartParser, model: str, folder: Path, claim: Claim) -> Upload:
    parser.finalize()
    if not form.ended:
        raise _malformed()
    signature = bytes(form.texts.pop(SIGNATURE, b""))
    digests = {name: hasher.hexdigest() for name, hasher in form.hashers.items()}
    claimed = []
    for reference, field in REFERENCES.items():
        if (named := form.texts.pop(reference, None)) is None:
            continue
        if field in form.sizes:
            raise Invalid("bad_field", f"The file {field!r} came here and in pieces, too.")
        found = claim(read_text(reference, named), field, folder / ALL_FILES[field])
        form.sizes[field] = found.size_bytes
        digests[field] = found.sha256
        claimed.append(found.id)
    options = read_options(form.texts, model)
    options = msgspec.structs.replace(options, evaluated=EVALUATION in form.sizes)
    asked = (options.metric, options.metric_margin, options.slice_margin)
    if not options.evaluated and any(item is not None for item in asked):
        raise Invalid(
            "missing_file",
            "A metric or a margin says nothing without evaluation rows.",
            "Send labelled rows as the file 'evaluation' (npz).",
        )
    sent = [field for field in FILES if field != EVALUATION or options.evaluated]
    for field in sent:
        stand_in = OPTIONAL_FILES.get(field)
        if field not in form.sizes and stand_in in form.sizes:
            (folder / FILES[field]).hardlink_to(folder / FILES[stand_in])
        elif not form.sizes.get(field):
            raise Invalid(
                "missing_file",
                f"The file {field!r} is missing or empty.",
                "An upload has a model (ONNX or TFLite), calibration and golden examples (npz), "
                "and may have baseline examples.",
            )
    check_variants(options, form.sizes)
    for field in sent:
        if field != "model":
            archives.inspect(folder / FILES[field], field)
    sync_folder(folder)
    sync_folder(folder.parent)
    own = {name: digests[name] for name in VARIANT_FILES if name in form.sizes}
    return Upload(
        folder.name,
        options,
        digests["model"],
        form.sizes["model"],
        signature,
        tuple(claimed),
        own,
    )


def _malformed() -> Invalid:
    return Invalid(
        "bad_multipart", "The form is malformed or ends too early.", "Send the request again."
    )
