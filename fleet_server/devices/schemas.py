"""Devices, cohorts and the stop as the API takes and shows them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Labels = Annotated[dict[str, str], Field(examples=[{"site": "lab", "hardware": "rpi5"}])]
SelectorBody = Annotated[
    dict[str, str | list[str]], Field(examples=[{"site": "lab", "hardware": ["rpi4", "rpi5"]}])
]
Name = Annotated[str, Field(max_length=63, examples=["dev-0042"])]
TimeMs = Annotated[int, Field(examples=[1_795_000_000_000])]


class Body(BaseModel):
    """A request's body: unknown fields are refused, so that a typing error is not silent."""

    model_config = ConfigDict(extra="forbid")


class TokenBody(Body):
    """Asks for a token; an empty ``device`` lets each of its ``count`` devices choose its name,
    which then begins with ``prefix``.
    """

    labels: Labels = {}
    device: Annotated[str, Field(max_length=63, examples=[""])] = ""
    prefix: Annotated[str, Field(max_length=62, examples=["line7-"])] = ""
    count: Annotated[int, Field(examples=[1])] = 1
    valid_ms: Annotated[int, Field(examples=[3_600_000])] = 24 * 3_600_000


class TokenShown(BaseModel):
    """A token. Its text is not shown again; its id names it from then on."""

    id: Annotated[str, Field(examples=["5b0c7a119e42"])]
    token: Annotated[str, Field(examples=["eyJmbGVldCI6ImhvbWUiLCJ..."])]
    expires_ms: TimeMs
    device: str
    labels: Labels
    prefix: str = ""
    count: int = 1


class TokenListed(BaseModel):
    """A token that was made, without its secret."""

    model_config = ConfigDict(from_attributes=True)

    id: Annotated[str, Field(examples=["5b0c7a119e42"])]
    device: str
    prefix: Annotated[str, Field(examples=["line7-"])]
    labels: Labels
    count: Annotated[int, Field(examples=[500])]
    used: Annotated[int, Field(examples=[12])]
    created_ms: TimeMs
    expires_ms: TimeMs
    revoked_ms: int | None


class RetiredShown(BaseModel):
    """A device whose certificates are worthless now."""

    device: Name
    revoked: Annotated[int, Field(examples=[1])]


class AlarmShown(BaseModel):
    """An alarm that was cleared."""

    device: Name
    cleared: Annotated[str, Field(examples=["cloned_identity"])]


class CohortBody(Body):
    """Creates a cohort; among those that match a device, the highest priority wins."""

    name: Annotated[str, Field(max_length=63, examples=["lab"])]
    selector: SelectorBody
    priority: Annotated[int, Field(examples=[10])] = 10


class CohortShown(BaseModel):
    """A cohort and the number of its devices."""

    model_config = ConfigDict(from_attributes=True)

    name: Annotated[str, Field(examples=["lab"])]
    selector: SelectorBody
    priority: Annotated[int, Field(examples=[10])]
    devices: Annotated[int, Field(examples=[12])]


class LabelsBody(Body):
    """All labels that a device shall have."""

    labels: Labels


class ProgressShown(BaseModel):
    """Where a device stands with one model; releases are named by their manifest's digest."""

    model_config = ConfigDict(from_attributes=True)

    model: Annotated[str, Field(examples=["detector"])]
    rollout: str
    phase: Annotated[str, Field(examples=["succeeded"])]
    target: str
    active: str
    standby: str
    generation: int
    epoch: int
    changed_ms: TimeMs
    reason: str | None
    detail: str


class DeviceShown(BaseModel):
    """A device, what it offers and the newest that it said."""

    name: Name
    cohort: Annotated[str, Field(examples=["lab"])]
    labels: Labels
    online: bool
    enrolled_ms: TimeMs
    last_seen_ms: Annotated[int | None, Field(examples=[1_795_000_000_000])]
    agent: Annotated[str, Field(examples=["0.1.0"])]
    capabilities: Annotated[
        dict[str, Any], Field(examples=[{"runtimes": {"onnxruntime": "1.31.1"}}])
    ]
    active: Annotated[dict[str, str], Field(examples=[{"detector": "9f2c..."}])]
    progress: list[ProgressShown]
    retired_ms: Annotated[int | None, Field(examples=[None])]
    alarm: Annotated[str | None, Field(examples=[None])]


class RefusalShown(BaseModel):
    """A control document that the device did not accept, by the device's own time."""

    model_config = ConfigDict(from_attributes=True)

    topic: Annotated[str, Field(examples=["fleet/v1/home/cohort/lab/detector"])]
    reason: Annotated[str, Field(examples=["old_epoch"])]
    detail: str
    at_ms: TimeMs
    received_ms: TimeMs


class DeviceDetails(DeviceShown):
    """A device with what it refused of late."""

    refusals: list[RefusalShown]


class DevicePage(BaseModel):
    """Devices in order of their names; ``next_after`` asks for the page after this one."""

    devices: list[DeviceShown]
    next_after: Annotated[str | None, Field(examples=[None])]


class StopBody(Body):
    """Stops the fleet, or lifts the stop."""

    stopped: bool
    reason: Annotated[str, Field(examples=["smoke in the lab"])] = ""


class StopShown(BaseModel):
    """Whether the fleet is stopped, why, since when, and the epoch of the document that says so."""

    model_config = ConfigDict(from_attributes=True)

    stopped: bool
    reason: str
    epoch: Annotated[int, Field(examples=[1_795_000_000_000])]
    changed_ms: TimeMs


class EnrolmentShown(BaseModel):
    """For the documentation only: the contract's EnrolmentAnswer, which devices read."""

    device: Name
    fleet: Annotated[str, Field(examples=["home"])]
    broker: Annotated[str, Field(examples=["mqtts://127.0.0.1:8883"])]
    artifacts: Annotated[str, Field(examples=["https://127.0.0.1:8421/v1/store"])]
    certificate: Annotated[str, Field(examples=["-----BEGIN CERTIFICATE-----..."])]


class RenewalShown(BaseModel):
    """For the documentation only: the contract's RenewalAnswer, which devices read."""

    broker: Annotated[str, Field(examples=["mqtts://127.0.0.1:8883"])]
    artifacts: Annotated[str, Field(examples=["https://127.0.0.1:8421/v1/store"])]
    certificate: Annotated[str, Field(examples=["-----BEGIN CERTIFICATE-----..."])]


class AuthorityShown(BaseModel):
    """An authority: ``standing`` is issues, believed, or renews (its certificates may renew)."""

    model_config = ConfigDict(from_attributes=True)

    name: Annotated[str, Field(examples=["device-1"])]
    standing: Annotated[str, Field(examples=["issues"])]
    fingerprint: str
    not_after_ms: int


class LineShown(BaseModel):
    """The authorities of devices, or of server and broker. ``behind`` counts devices that have not
    renewed since a rotation, ``names`` are the first hundred of them."""

    line: Annotated[str, Field(examples=["device"])]
    authorities: list[AuthorityShown]
    overlaps: bool
    behind: int
    names: list[str]
    next_step: str


class AuthoritiesShown(BaseModel):
    """How certificates stand; ``server_expires_ms`` is when the server's own expires."""

    server_expires_ms: int
    lines: list[LineShown]


class AuthorityStepBody(BaseModel):
    """Begin, or ``finish``; ``lost`` says that the old authority is in other hands."""

    model_config = ConfigDict(extra="forbid")

    line: Annotated[str, Field(pattern="^(device|server)$", examples=["device"])]
    finish: bool = False
    lost: bool = False


class AuthorityStepShown(BaseModel):
    """Without ``committed`` the anchors wait for signatures. ``behind`` devices have to renew."""

    committed: bool
    what: Annotated[str, Field(examples=["another authority for device-ca"])]
    behind: int
