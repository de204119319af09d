"""How devices join, renew and leave over HTTP: one transaction a call, with its audit.

Enrolment and renewal are the devices' own, over the listener that asks for their certificates;
the rest is an operator's. The tokens have endpoints of their own.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Request, Response

from fleet_contract import codec, limits
from fleet_contract.enrolment import (
    EnrolmentAnswer,
    EnrolmentRequest,
    RenewalAnswer,
    RenewalRequest,
)
from fleet_server.access.authentication import Operator, UsedAdmission, address_of
from fleet_server.api_names import DeviceName
from fleet_server.audit import service as audit
from fleet_server.devices import certificates, enrolment, leaving
from fleet_server.devices.authentication import ShownCertificate, UsedAuthority
from fleet_server.devices.schemas import (
    AlarmShown,
    EnrolmentShown,
    RenewalShown,
    RetiredShown,
    TokenShown,
)
from fleet_server.request_context import (
    CorrelationId,
    UsedClock,
    UsedDatabase,
    UsedSettings,
    WakePublisher,
)
from fleet_server.trust.endpoints import UsedCatalogue, UsedKeyring

router = APIRouter(prefix="/v1/devices", tags=["devices"])
_CSR = "-----BEGIN CERTIFICATE REQUEST-----..."
_ENROLMENT_EXAMPLE = {
    "secret": "5b0c...64 hexadecimal digits",
    "device": "dev-0042",
    "csr": _CSR,
    "capabilities": {
        "runtimes": {"onnxruntime": "1.31.1"},
        "machine": "aarch64",
        "max_opset": 26,
        "max_ir_version": 13,
        "memory_bytes": 4_000_000_000,
    },
}


def _broker_url(request: Request) -> str:
    return cast(str, request.app.state.device_broker_url)


def _expel(request: Request) -> Callable[[Sequence[str]], None]:
    return cast(Callable[[Sequence[str]], None], request.app.state.expel)


DeviceBroker = Annotated[str, Depends(_broker_url)]
Expel = Annotated[Callable[[Sequence[str]], None], Depends(_expel)]
"""To be called with the names after the transaction that revoked their certificates."""


async def _enrolment_request(request: Request) -> EnrolmentRequest:
    body = await request.body()
    return codec.decode_json(body, EnrolmentRequest, limit_bytes=limits.STATUS_BYTES)


async def _renewal_request(request: Request) -> RenewalRequest:
    body = await request.body()
    return codec.decode_json(body, RenewalRequest, limit_bytes=limits.STATUS_BYTES)


def _takes(example: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"example": example}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    "/enrol",
    status_code=201,
    summary="Spend a token (devices)",
    response_model=EnrolmentShown,
    openapi_extra=_takes(_ENROLMENT_EXAMPLE),
)
def enrol(
    request: Request,
    admission: UsedAdmission,
    body: Annotated[EnrolmentRequest, Depends(_enrolment_request)],
    broker: DeviceBroker,
    authority: UsedAuthority,
    database: UsedDatabase,
    keyring: UsedKeyring,
    clock: UsedClock,
    settings: UsedSettings,
    correlation_id: CorrelationId,
    wake_publisher: WakePublisher,
) -> Response:
    """The token is the authentication. The device's key never leaves it: it sends a request for a
    certificate, and gets the certificate.
    """
    now_ms = clock.now_ms()
    # The token is the credential here, and nobody may try many.
    attempt = admission.attempt(address_of(request), body.secret)
    with attempt, database.transaction() as session:
        enrolled = enrolment.enrol(
            session,
            keyring,
            authority,
            body,
            lifetime_hours=settings.device_certificate_hours,
            now_ms=now_ms,
        )
        audit.record(
            session,
            action="device.enrol",
            resource_type="device",
            resource_name=enrolled.device,
            outcome="done",
            user=f"device:{enrolled.device}",
            correlation_id=correlation_id,
            detail={"cohort": enrolled.cohort},
            now_ms=now_ms,
        )
    wake_publisher()
    answer = EnrolmentAnswer(
        device=enrolled.device,
        fleet=settings.fleet,
        broker=broker,
        artifacts=f"{settings.devices_url}/v1/store",
        certificate=enrolled.certificate.decode(),
    )
    return Response(codec.encode_json(answer), 201, media_type="application/json")


@router.post(
    "/renew",
    summary="Renew a certificate (devices)",
    response_model=RenewalShown,
    openapi_extra=_takes({"csr": _CSR}),
)
def renew(
    shown: ShownCertificate,
    body: Annotated[RenewalRequest, Depends(_renewal_request)],
    broker: DeviceBroker,
    authority: UsedAuthority,
    database: UsedDatabase,
    clock: UsedClock,
    settings: UsedSettings,
    correlation_id: CorrelationId,
) -> Response:
    """The certificate of the connection is the authentication; it may have expired, but must not
    be revoked. The same request again is answered again.
    """
    now_ms = clock.now_ms()
    with database.transaction() as session:
        renewed = certificates.renew(
            session,
            authority,
            fleet=settings.fleet,
            fingerprint=shown,
            csr=body.csr,
            lifetime_hours=settings.device_certificate_hours,
            now_ms=now_ms,
        )
        audit.record(
            session,
            action="device.alarm" if renewed.alarm else "device.renew",
            resource_type="device",
            resource_name=renewed.device,
            outcome="refused" if renewed.alarm else "done",
            user=f"device:{renewed.device}",
            correlation_id=correlation_id,
            detail={"certificate": shown},
            now_ms=now_ms,
            reason=renewed.alarm,
        )
    if renewed.alarm:
        raise certificates.refuse_clone(renewed.device)
    answer = RenewalAnswer(
        broker=broker,
        artifacts=f"{settings.devices_url}/v1/store",
        certificate=renewed.pem.decode(),
    )
    return Response(codec.encode_json(answer), media_type="application/json")


@router.post("/{name}/retire", summary="Retire a device")
def retire(
    name: DeviceName,
    operator: Operator,
    database: UsedDatabase,
    clock: UsedClock,
    settings: UsedSettings,
    correlation_id: CorrelationId,
    expel: Expel,
) -> RetiredShown:
    """Its certificates are revoked, its connection ends, and no rollout counts on it any more. What
    it did stays on record. Its model goes on answering: that is not in the fleet's hands.
    """
    now_ms = clock.now_ms()
    with database.transaction() as session:
        revoked = leaving.retire(session, settings.fleet, name, now_ms=now_ms)
        audit.record(
            session,
            action="device.retire",
            resource_type="device",
            resource_name=name,
            outcome="done",
            user=operator.name,
            correlation_id=correlation_id,
            detail={"revoked": revoked},
            now_ms=now_ms,
        )
    expel([name])
    return RetiredShown(device=name, revoked=revoked)


@router.post("/{name}/replace", status_code=201, summary="Enrol a device anew under its name")
def replace(
    name: DeviceName,
    operator: Operator,
    database: UsedDatabase,
    keyring: UsedKeyring,
    catalogue: UsedCatalogue,
    clock: UsedClock,
    settings: UsedSettings,
    correlation_id: CorrelationId,
    expel: Expel,
) -> TokenShown:
    """Its certificates are revoked and its connection ends; the token in the answer enrols one
    device under the same name, with its labels.
    """
    now_ms = clock.now_ms()
    with database.transaction() as session:
        revoked = leaving.revoke(session, settings.fleet, name, now_ms=now_ms)
        made = enrolment.create_token(
            session,
            keyring,
            server=settings.devices_url,
            root=catalogue.root_digest,
            labels={},
            device=name,
            replaces=True,
            valid_ms=enrolment.REPLACEMENT_MS,
            random_bytes=clock.random_bytes,
            now_ms=now_ms,
        )
        audit.record(
            session,
            action="device.replace",
            resource_type="device",
            resource_name=name,
            outcome="done",
            user=operator.name,
            correlation_id=correlation_id,
            detail={"revoked": revoked, "token": made.id},
            now_ms=now_ms,
        )
    expel([name])
    return TokenShown(
        id=made.id, token=made.token, expires_ms=made.expires_ms, device=name, labels={}
    )


@router.delete("/{name}/alarm", summary="Clear the alarm about a device")
def clear_alarm(
    name: DeviceName,
    operator: Operator,
    database: UsedDatabase,
    clock: UsedClock,
    settings: UsedSettings,
    correlation_id: CorrelationId,
) -> AlarmShown:
    """To be done once the cause is known; the alarm comes again if the cause does."""
    now_ms = clock.now_ms()
    with database.transaction() as session:
        alarm = leaving.clear_alarm(session, settings.fleet, name)
        audit.record(
            session,
            action="device.clear-alarm",
            resource_type="device",
            resource_name=name,
            outcome="done",
            user=operator.name,
            correlation_id=correlation_id,
            detail={"alarm": alarm},
            now_ms=now_ms,
        )
    return AlarmShown(device=name, cleared=alarm)
