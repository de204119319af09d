"""Uploads in pieces over HTTP: begun by a POST, gone on with by PATCH, asked about by HEAD.

Follows the IETF draft "Resumable Uploads for HTTP" (draft-ietf-httpbis-resumable-upload-12) in its
words: ``Upload-Offset``, ``Upload-Complete``, ``Upload-Length`` and ``application/partial-upload``.
Beginning differs: size and digest are announced first, since an upload is found again by its
digest, and may be refused before its first byte.
"""

import re
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Path, Request, Response, status
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from fleet_contract.names import DIGEST_PATTERN
from fleet_server import problem
from fleet_server.access.authentication import Operator
from fleet_server.audit import service as audit
from fleet_server.errors import Conflict, Invalid, TooLarge
from fleet_server.releases.partial import View
from fleet_server.releases.resumable import ResumableUploads
from fleet_server.releases.upload_audit import note
from fleet_server.releases.uploads import ALL_FILES
from fleet_server.request_context import CorrelationId, UsedClock, UsedDatabase

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

MEDIA_TYPE = "application/partial-upload"
_OFFSET = re.compile(r"[0-9]{1,15}\Z")
_EXAMPLE: dict[str, Any] = {
    "field": "model",
    "size_bytes": 1_048_576,
    "sha256": "5e2b0a53b45aa8b0a5ba0a83e9c2e4f4a9b6dba7d2f6f4c6c0b1d0a0d9b1c2d3",
}
_SHOWN: dict[str, Any] = {
    "id": "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
    **_EXAMPLE,
    "offset_bytes": 65_536,
    "complete": False,
    "expires_ms": 1_795_086_400_000,
}
UploadId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
_HEADERS = {
    "Upload-Offset": {"schema": {"type": "integer"}, "description": "Bytes that are on disk."},
    "Upload-Length": {"schema": {"type": "integer"}, "description": "Bytes of the whole file."},
    "Upload-Complete": {
        "schema": {"type": "string"},
        "description": "?1 once all bytes are there and have the announced digest, else ?0.",
    },
}


class UploadIn(BaseModel):
    """A file that is to come: which one of a release, how large, and its SHA-256."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": _EXAMPLE})

    field: str = Field(max_length=40, json_schema_extra={"enum": list(ALL_FILES)})
    size_bytes: int = Field(ge=1, le=1 << 40)
    sha256: str = Field(pattern=DIGEST_PATTERN.replace(r"\Z", "$"))


class UploadOut(BaseModel):
    """How far an upload is. ``complete``: it has the announced digest and may become a release."""

    model_config = ConfigDict(json_schema_extra={"example": _SHOWN})

    id: str
    field: str
    size_bytes: int
    sha256: str
    offset_bytes: int
    complete: bool
    expires_ms: int


class UploadList(BaseModel):
    """An operator's own uploads."""

    uploads: list[UploadOut]


def _uploads(request: Request) -> ResumableUploads:
    return cast(ResumableUploads, request.app.state.uploads)


UsedUploads = Annotated[ResumableUploads, Depends(_uploads)]


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    summary="Begin an upload, or find it again",
    responses={200: {"model": UploadOut, "description": "You had begun it; go on from there."}},
)
def begin_upload(
    body: UploadIn,
    response: Response,
    operator: Operator,
    uploads: UsedUploads,
    database: UsedDatabase,
    clock: UsedClock,
    correlation_id: CorrelationId,
) -> UploadOut:
    """The same file of the same operator is the same upload: whoever lost the answer asks again."""
    now_ms = clock.now_ms()
    for dropped in uploads.sweep(now_ms):
        with database.transaction() as session:
            note(session, dropped, "upload.expire", audit.SYSTEM, correlation_id, now_ms)
    view, is_new = uploads.begin(
        operator.name,
        body.field,
        body.size_bytes,
        body.sha256,
        upload_id=clock.random_bytes(16).hex(),
        now_ms=now_ms,
    )
    action = "upload.begin" if is_new else "upload.resume"
    with database.transaction() as session:
        note(session, view, action, operator.name, correlation_id, now_ms)
    if not is_new:
        response.status_code = status.HTTP_200_OK
    response.headers["Location"] = f"/v1/uploads/{view.id}"
    response.headers.update(_headers(view))
    return _show(view)


@router.get("", summary="Your uploads")
def list_uploads(operator: Operator, uploads: UsedUploads) -> UploadList:
    """Those that no release was made of yet."""
    return UploadList(uploads=[_show(view) for view in uploads.of(operator.name)])


@router.head(
    "/{upload}",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="How far an upload is",
    responses={204: {"description": "How far it is.", "headers": _HEADERS}},
)
def ask_upload(upload: UploadId, operator: Operator, uploads: UsedUploads) -> Response:
    """An append that is still under way ends, so that the answer stays true."""
    return Response(status_code=204, headers=_headers(uploads.view(operator.name, upload)))


@router.patch(
    "/{upload}",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Send the next bytes",
    responses={204: {"description": "They are on disk.", "headers": _HEADERS}},
    openapi_extra={
        "parameters": [
            {
                "name": "Upload-Offset",
                "in": "header",
                "required": True,
                "schema": {"type": "integer", "minimum": 0},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                MEDIA_TYPE: {"schema": {"type": "string", "format": "binary", "example": "…"}}
            },
        },
    },
)
async def append_upload(
    upload: UploadId, request: Request, operator: Operator, uploads: UsedUploads
) -> Response:
    """Bytes count as they arrive, also of a request that is cut off. The last one makes it whole,
    if the digest is the announced one (else 422, and the upload is gone).
    """
    offset = _read_head(request)
    name = operator.name

    def check() -> View:
        left = uploads.view(name, upload)
        announced = int(request.headers.get("content-length", "0"))
        if offset == left.offset_bytes and offset + announced > left.size_bytes:
            raise TooLarge(
                "upload_too_long",
                f"The upload was announced with {left.size_bytes} bytes.",
                "Begin another one if the file has changed.",
            )
        return left

    before = await run_in_threadpool(check)
    if before.complete and offset == before.size_bytes:
        # Its last bytes came in a request whose answer was lost.
        return Response(status_code=204, headers=_headers(before))
    try:
        # Entered and left in a thread, too: opening and fsync may take their time.
        opened = uploads.appending(name, upload, offset)
        write = await run_in_threadpool(opened.__enter__)
        try:
            async for chunk in request.stream():
                if chunk:
                    await run_in_threadpool(write, chunk)
        finally:
            await run_in_threadpool(opened.__exit__, None, None, None)
        view = await run_in_threadpool(uploads.finish, name, upload)
    except ClientDisconnect:
        return Response(status_code=400)  # nobody reads it
    except Conflict as error:
        return _refuse(request, error, await run_in_threadpool(uploads.view, name, upload))
    return Response(status_code=204, headers=_headers(view))


@router.delete("/{upload}", status_code=status.HTTP_204_NO_CONTENT, summary="Drop an upload")
def drop_upload(
    upload: UploadId,
    operator: Operator,
    uploads: UsedUploads,
    database: UsedDatabase,
    clock: UsedClock,
    correlation_id: CorrelationId,
) -> Response:
    """Nothing stays of it."""
    view = uploads.drop(operator.name, upload)
    with database.transaction() as session:
        note(session, view, "upload.drop", operator.name, correlation_id, clock.now_ms())
    return Response(status_code=204)


def _read_head(request: Request) -> int:
    offset = request.headers.get("upload-offset", "")
    if not _OFFSET.match(offset):
        raise Invalid(
            "bad_offset",
            "The header Upload-Offset says from which byte on these are.",
            "Ask for the present one by HEAD.",
        )
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != MEDIA_TYPE:
        raise Invalid("not_partial", f"The bytes of an upload are sent as {MEDIA_TYPE}.")
    return int(offset)


def _refuse(request: Request, error: Conflict, view: View) -> Response:
    """Answer a wrong offset with the right one, as the draft asks."""
    found = problem.describe(
        error, instance=request.url.path, correlation_id=request.state.correlation_id
    )
    answer = problem.respond(found)
    answer.headers.update(_headers(view))
    return answer


def _headers(view: View) -> dict[str, str]:
    return {
        "Upload-Offset": str(view.offset_bytes),
        "Upload-Length": str(view.size_bytes),
        "Upload-Complete": "?1" if view.complete else "?0",
        "Cache-Control": "no-store",
    }


def _show(view: View) -> UploadOut:
    return UploadOut.model_validate(view, from_attributes=True)
