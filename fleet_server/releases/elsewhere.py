"""Leading a requester to the object store, instead of sending the file.

Decides who is led there: only one who says so, for the answer is of no use to anybody else. Where
nothing can be lent the file comes from the folder, as it always may.
"""

from typing import Any

import structlog
from fastapi import Request, Response, status
from fastapi.responses import RedirectResponse

from fleet_contract.manifest import FOLLOWS, FOLLOWS_HEADER
from fleet_server.errors import Unavailable
from fleet_server.releases.store import Store

FOUND_ELSEWHERE: dict[int | str, dict[str, Any]] = {
    307: {
        "description": f"Where it can be had for some minutes; only for `{FOLLOWS_HEADER}: "
        f"{FOLLOWS}`, and if the server has an object store."
    }
}

log = structlog.get_logger(__name__)


def lead_elsewhere(request: Request, store: Store, path: str) -> Response | None:
    """Return a redirect to the object of a file that is in the store, None if there is to be none.

    The URL is good for whoever has it, so no cache may keep it.
    """
    if store.mirror is None or request.method != "GET":
        return None
    if request.headers.get(FOLLOWS_HEADER) != FOLLOWS or "if-none-match" in request.headers:
        return None
    try:
        url = store.mirror.lend(path)
    except Unavailable as error:
        log.warning("served from the folder", path=path, why=error.detail)
        return None
    if url is None:
        return None
    return RedirectResponse(
        url, status.HTTP_307_TEMPORARY_REDIRECT, headers={"Cache-Control": "no-store"}
    )
