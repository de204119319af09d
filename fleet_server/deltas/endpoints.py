"""Patches over HTTP: the one that a device asks for, and an operator's view of a release's."""

from collections.abc import Callable
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict

from fleet_contract.manifest import artifact_path
from fleet_contract.names import DIGEST_PATTERN
from fleet_server.access.authentication import Operator
from fleet_server.api_names import ModelName, Version
from fleet_server.deltas import service
from fleet_server.deltas.making import DeltaMaker
from fleet_server.errors import NotFound
from fleet_server.immutable_files import answer_file
from fleet_server.releases import service as releases
from fleet_server.releases.elsewhere import FOUND_ELSEWHERE, lead_elsewhere
from fleet_server.request_context import UsedDatabase

router = APIRouter(prefix="/v1/models", tags=["models"])

_KEEP = "private, max-age=3600"
_EXAMPLE: dict[str, Any] = {
    "old_version": "1.0.0",
    "old_digest": "5e2b0a53b45aa8b0a5ba0a83e9c2e4f4a9b6dba7d2f6f4c6c0b1d0a0d9b1c2d3",
    "new_digest": "32057ad71a80a9d22253560bf471f887b75ba1f9027d2c0fd5dad9ef5808acba",
    "state": "made",
    "patch_bytes": 3_904,
    "new_bytes": 26_048,
    "encode_ms": 240,
    "made_ms": 1_795_000_000_410,
}
Digest = Annotated[str, Path(pattern=DIGEST_PATTERN.replace(r"\Z", "$"))]


class DeltaOut(BaseModel):
    """A patch to an artifact of the release from one of an older release. ``state`` is ``waiting``,
    ``made``, ``not_worth`` (above 70% of the artifact) or ``failed``.
    """

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    old_version: str
    old_digest: str
    new_digest: str
    state: str
    patch_bytes: int
    new_bytes: int
    encode_ms: int
    made_ms: int


class DeltaList(BaseModel):
    """The patches that lead to a release."""

    deltas: list[DeltaOut]


def _maker(request: Request) -> DeltaMaker:
    return cast(DeltaMaker, request.app.state.deltas)


UsedMaker = Annotated[DeltaMaker, Depends(_maker)]


@router.get("/{model}/releases/{version}/deltas", summary="Patches to a release")
def list_deltas(
    model: ModelName,
    version: Version,
    _operator: Operator,
    database: UsedDatabase,
    maker: UsedMaker,
) -> DeltaList:
    """From which releases devices get to this one by a patch, and how large those are."""
    with database.reading() as session:
        releases.get(session, model, version)
        tried = service.of_release(session, model, version)
    known = {(delta.old_digest, delta.new_digest) for delta in tried}
    waiting = [
        DeltaOut(
            old_version=delta.old_version,
            old_digest=delta.old.digest,
            new_digest=delta.new.digest,
            state="waiting",
            patch_bytes=0,
            new_bytes=delta.new.size_bytes,
            encode_ms=0,
            made_ms=0,
        )
        for delta in maker.waiting(model, version)
        if (delta.old.digest, delta.new.digest) not in known
    ]
    done = [DeltaOut.model_validate(delta, from_attributes=True) for delta in tried]
    return DeltaList(deltas=[*done, *waiting])


def store_router(admit: Callable[..., object]) -> APIRouter:
    """Return the routes of the store that lead to patches; they stand before the store's own.

    ``admit`` is a dependency that raises for strangers.
    """
    store = APIRouter(prefix="/v1/store/deltas", tags=["store"], dependencies=[Depends(admit)])
    store.get(
        "/{old_digest}/{new_digest}",
        summary="A patch between two artifacts",
        response_class=FileResponse,
        responses={206: {"description": "The range that was asked for."}, **FOUND_ELSEWHERE},
    )(read_delta)
    return store


def read_delta(
    old_digest: Digest,
    new_digest: Digest,
    request: Request,
    database: UsedDatabase,
    maker: UsedMaker,
) -> Response:
    """By the SHA-256 of both; 404 where there is none: then the artifact itself is the way."""
    with database.reading() as session:
        delta = service.find(session, old_digest, new_digest)
    path = None if delta is None else maker.patch_file(delta)
    if delta is None or path is None or delta.patch_digest is None:
        raise NotFound("no_such_delta", "There is no patch between these two artifacts.")
    if "range" not in request.headers:
        maker.note_served(delta)
    patch = artifact_path(delta.model, delta.patch_digest)
    elsewhere = lead_elsewhere(request, maker.patches, patch)
    return elsewhere or answer_file(request, path, digest=delta.patch_digest, keep=_KEEP)
