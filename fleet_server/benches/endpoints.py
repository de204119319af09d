"""Bench devices over HTTP: they ask for jobs and hand in results; operators see who is there.

A question is left open for a while, so that a job is begun at once and a device that waits costs
little. Who may see what of a job is decided at the desk.
"""

import asyncio
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Path, Request, Response, status
from fastapi.concurrency import run_in_threadpool

from fleet_contract import limits
from fleet_contract.messages.bench import read_poll, read_result
from fleet_server.access.authentication import Operator
from fleet_server.benches import service
from fleet_server.benches.desk import Desk
from fleet_server.benches.schemas import BenchList, show
from fleet_server.devices.authentication import KnownDevice
from fleet_server.immutable_files import answer_file
from fleet_server.request_context import CorrelationId, UsedClock, UsedDatabase, UsedSettings

devices = APIRouter(prefix="/v1/bench", tags=["benches"])
operators = APIRouter(prefix="/v1/benches", tags=["benches"])

_LOOK_S = 0.2
_ENVELOPE = "application/vnd.dsse.envelope.v1+json"
_POLL_EXAMPLE = {
    "capabilities": {
        "runtimes": {"onnxruntime": "1.31.1"},
        "machine": "aarch64",
        "max_opset": 26,
        "max_ir_version": 13,
        "memory_bytes": 4_000_000_000,
    },
    "done": 1_795_000_000_126,
    "refusal": "",
}
_RESULT_EXAMPLE = {
    "timed": [
        {
            "digest": "b8" * 32,
            "reason": None,
            "detail": "",
            "candidate_us": 512.5,
            "rival_us": 1024.3,
            "candidate_wall_us": 520.5,
            "rival_wall_us": 1040.8,
            "rounds": 399,
        }
    ],
    "reason": None,
    "detail": "",
}


def _desk(request: Request) -> Desk:
    return cast(Desk, request.app.state.desk)


UsedDesk = Annotated[Desk, Depends(_desk)]
Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[int, Path(ge=0, le=limits.LARGEST_INTEGER)]


def _takes(example: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"example": example}}
    return {"requestBody": {"required": True, "content": content}}


@devices.post(
    "/poll",
    summary="Ask for a bench job (devices)",
    response_class=Response,
    responses={
        200: {"description": "A job, signed.", "content": {_ENVELOPE: {}}},
        204: {"description": "There is none now: ask again."},
    },
    openapi_extra=_takes(_POLL_EXAMPLE),
)
async def poll(
    request: Request,
    device: KnownDevice,
    desk: UsedDesk,
    database: UsedDatabase,
    settings: UsedSettings,
    clock: UsedClock,
) -> Response:
    """The certificate of the connection says who asks, and only a job for this device is given."""
    asked = read_poll(await request.body())

    def note() -> None:
        with database.transaction() as session:
            service.sighted(session, settings.fleet, device, asked, now_ms=clock.now_ms())

    await run_in_threadpool(note)
    end_ms = clock.monotonic_ms() + desk.poll_ms
    while True:
        # A job that is handed to a broken connection is lost time for whoever waits for it.
        gone = await request.is_disconnected()
        envelope = None if gone else desk.take(device, asked)
        if envelope is not None:
            return Response(envelope, media_type=_ENVELOPE)
        if gone or desk.closed or clock.monotonic_ms() >= end_ms:
            return Response(status_code=status.HTTP_204_NO_CONTENT)
        await asyncio.sleep(_LOOK_S)


@devices.get(
    "/files/{digest}",
    summary="Fetch a file of a bench job (devices)",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
def file(digest: Digest, request: Request, device: KnownDevice, desk: UsedDesk) -> Response:
    """Only while the job is under way, and only for the device that it was given to; by range."""
    return answer_file(request, desk.file(device, digest), digest=digest, keep="no-store")


@devices.post(
    "/jobs/{number}/result",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Hand in the result of a bench job (devices)",
    openapi_extra=_takes(_RESULT_EXAMPLE),
)
async def hand_in(
    number: Number,
    request: Request,
    device: KnownDevice,
    desk: UsedDesk,
    database: UsedDatabase,
    settings: UsedSettings,
    clock: UsedClock,
    correlation_id: CorrelationId,
) -> None:
    """A result is taken once, and from the device that was given the job."""
    result = read_result(await request.body())

    def record() -> None:
        order = desk.claim(device, number)
        with database.transaction() as session:
            service.record_result(
                session,
                settings.fleet,
                device,
                number,
                order.release,
                result,
                correlation_id=correlation_id,
                now_ms=clock.now_ms(),
            )
        desk.settle(order, result)

    await run_in_threadpool(record)


@operators.get("", summary="The bench devices")
def list_benches(
    _operator: Operator, database: UsedDatabase, settings: UsedSettings, clock: UsedClock
) -> BenchList:
    """Devices that time candidates for releases that are being staged."""
    with database.reading() as session:
        found = service.every(session, settings.fleet, now_ms=clock.now_ms())
    return BenchList(benches=[show(view) for view in found])
