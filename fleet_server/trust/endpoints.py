"""The keyset over HTTP. It is public: it authenticates itself by the root key that devices pin."""

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Request, Response

from fleet_server.trust.keyring import Keyring

router = APIRouter(prefix="/v1/trust", tags=["trust"])


def _keyring(request: Request) -> Keyring:
    return cast(Keyring, request.app.state.keyring)


UsedKeyring = Annotated[Keyring, Depends(_keyring)]

_EXAMPLE = {
    "payload": "eyJkaXJlY3RvcnMiOlsuLi5dfQ==",
    "payloadType": "application/vnd.edgefleet.keyset.v1+json",
    "signatures": [{"keyid": "9f2c…", "sig": "mZx0…"}],
}


@router.get(
    "/keyset",
    summary="The signed keyset",
    response_class=Response,
    responses={200: {"content": {"application/json": {"example": _EXAMPLE}}}},
)
def read_keyset(keyring: UsedKeyring) -> Response:
    """The keys that this fleet's devices may believe, in a DSSE envelope of the root key."""
    return Response(
        keyring.keyset_envelope(),
        media_type="application/json",
        headers={"Cache-Control": "no-cache"},
    )
