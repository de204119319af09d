"""How a file that never changes is answered over HTTP: by range if asked for, tagged by SHA-256.

Decides which of a request's headers are understood. Which file it is, who may read it, and for how
long it may be kept are the endpoint's to say.
"""

import re
from pathlib import Path

from fastapi import Request, Response, status
from fastapi.responses import FileResponse

_RANGE = re.compile(r"bytes=(\d{1,19}-\d{0,19}|-\d{1,19})\Z")


class _StoredFile(FileResponse):
    # Devices ask for one range; several at once would only be work for nothing.
    max_ranges = 1


def _knows(wanted: str, digest: str) -> bool:
    """Say whether If-None-Match names the file; weakly is enough there (RFC 9110, 13.1.2)."""
    tags = {tag.strip().removeprefix("W/") for tag in wanted.split(",")}
    return "*" in tags or f'"{digest}"' in tags


def answer_file(request: Request, path: Path, *, digest: str, keep: str) -> Response:
    """Return the answer for a file; ``keep`` is the Cache-Control header."""
    headers = {"ETag": f'"{digest}"', "Cache-Control": keep}
    if _knows(request.headers.get("if-none-match", ""), digest):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    if request.method == "HEAD" or not _RANGE.match(request.headers.get("range", "")):
        # A range is for GET (RFC 9110, 14.2). Whatever else the header says is not understood and
        # therefore ignored.
        request.scope["headers"] = [
            item for item in request.scope["headers"] if item[0] != b"range"
        ]
    return _StoredFile(path, headers=headers, media_type="application/octet-stream")
