"""What a device last reported, over HTTP, for reading only."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from fleet_contract.names import MODEL_PATTERN
from fleet_server.access.authentication import Operator
from fleet_server.devices import service as devices
from fleet_server.request_context import UsedDatabase, UsedSettings
from fleet_server.telemetry import service
from fleet_server.telemetry.schemas import ReportsShown, WindowShown

router = APIRouter(prefix="/v1/devices", tags=["telemetry"])

# Python's \Z is z in the expressions that the API is described with.
_MODEL = MODEL_PATTERN.removesuffix(r"\Z") + "$"


@router.get("/{name}/reports", summary="A device's newest telemetry windows")
def read_reports(
    name: Annotated[str, Path(max_length=63, examples=["dev-0042"])],
    _operator: Operator,
    database: UsedDatabase,
    settings: UsedSettings,
    model: Annotated[str | None, Query(pattern=_MODEL, description="only of this model")] = None,
    count: Annotated[int, Query(ge=1, le=500)] = 20,
) -> ReportsShown:
    """Counters and latency quantiles as the device reported them; empty before its first report."""
    with database.reading() as session:
        devices.device(session, settings.fleet, name)
        stored = service.newest_windows(session, settings.fleet, name, model=model, count=count)
    return ReportsShown(device=name, windows=[WindowShown.of(item) for item in stored])
