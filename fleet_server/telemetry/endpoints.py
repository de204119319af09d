"""What a device last reported, over HTTP, for reading only."""

from typing import Annotated

from fastapi import APIRouter, Query

from fleet_server.access.authentication import Operator
from fleet_server.api_names import DeviceName, ModelName
from fleet_server.devices import service as devices
from fleet_server.request_context import UsedDatabase, UsedSettings
from fleet_server.telemetry import service
from fleet_server.telemetry.schemas import ReportsShown, WindowShown

router = APIRouter(prefix="/v1/devices", tags=["telemetry"])


@router.get("/{name}/reports", summary="A device's newest telemetry windows")
def read_reports(
    name: DeviceName,
    operator: Operator,
    database: UsedDatabase,
    settings: UsedSettings,
    model: Annotated[ModelName | None, Query(description="only of this model")] = None,
    count: Annotated[int, Query(ge=1, le=500)] = 20,
) -> ReportsShown:
    """Counters and latency quantiles as the device reported them; empty before its first report."""
    with database.reading() as session:
        devices.device(session, settings.fleet, name)
        stored = service.newest_windows(session, settings.fleet, name, model=model, count=count)
    shown = [WindowShown.of(item) for item in stored]
    return ReportsShown(device=name, windows=[one for one in shown if operator.sees(one.model)])
