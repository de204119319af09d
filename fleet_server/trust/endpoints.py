"""The repository of what exists over HTTP. It is public: it authenticates itself.

Devices start from a root whose hash they were given, so nothing here needs protection but the
server's time: names are looked up, never searched for. The files of releases are the store's.
"""

from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Path, Request, Response

from fleet_server.errors import NotFound
from fleet_server.trust.catalogue.repository import Catalogue
from fleet_server.trust.keyring import Keyring

router = APIRouter(prefix="/v1/trust", tags=["trust"])

_FOR_EVER = "public, max-age=31536000, immutable"


def _catalogue(request: Request) -> Catalogue:
    return cast(Catalogue, request.app.state.catalogue)


def _keyring(request: Request) -> Keyring:
    return cast(Keyring, request.app.state.keyring)


UsedKeyring = Annotated[Keyring, Depends(_keyring)]
UsedCatalogue = Annotated[Catalogue, Depends(_catalogue)]
Name = Annotated[str, Path(max_length=120)]
_TUF: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"example": {"signatures": [], "signed": {}}}}}
}


@router.get(
    "/metadata/{name}",
    summary="TUF metadata",
    response_class=Response,
    responses=_TUF,
)
def read_metadata(name: Name, catalogue: UsedCatalogue) -> Response:
    """`timestamp.json`, or `VERSION.ROLE.json` for every other role: immutable once shown."""
    return _answer(
        catalogue.read(name), "no-cache" if name == "timestamp.json" else _FOR_EVER, "metadata"
    )


@router.get(
    "/roots/{digest}",
    summary="The root that an enrolment token names",
    response_class=Response,
    responses=_TUF,
)
def read_root(
    digest: Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")], catalogue: UsedCatalogue
) -> Response:
    """By the SHA-256 of the file, however old it is."""
    return _answer(catalogue.root_by_digest(digest), _FOR_EVER, "root")


@router.get(
    "/targets/{name}",
    summary="A target of the top-level role",
    response_class=Response,
    responses={200: {"content": {"application/json": {"example": {"generation": 1}}}}},
)
def read_target(name: Name, catalogue: UsedCatalogue) -> Response:
    """`HASH.keyset.json`: the keys that this fleet's devices may believe. `HASH.anchors.pem`: the
    certificates that vouch for server and broker.
    """
    kind = "application/x-pem-file" if name.endswith(".pem") else "application/json"
    return _answer(catalogue.read_target(name), _FOR_EVER, "target", kind)


def _answer(data: bytes | None, cache: str, what: str, kind: str = "application/json") -> Response:
    if data is None:
        raise NotFound("no_such_metadata", f"There is no such {what}.")
    return Response(data, media_type=kind, headers={"Cache-Control": cache})
