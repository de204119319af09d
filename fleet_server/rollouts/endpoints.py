"""Rollouts over HTTP: what operators do and see. Nothing is decided here."""

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from fleet_server.access.authentication import Operator
from fleet_server.api_names import ModelName, Version
from fleet_server.request_context import (
    CorrelationId,
    UsedClock,
    UsedDatabase,
    UsedSettings,
    WakePublisher,
)
from fleet_server.rollouts import compliance, service, views
from fleet_server.rollouts import plan as plans
from fleet_server.rollouts.applying import Author
from fleet_server.rollouts.controller import Controller
from fleet_server.rollouts.plan import RolloutPlan
from fleet_server.rollouts.schemas import (
    CohortReleaseShown,
    ComplianceReport,
    Explanation,
    PlanBody,
    PlanShown,
    RollbackBody,
    RolloutBody,
    RolloutBrief,
    RolloutShown,
)
from fleet_server.trust.endpoints import UsedKeyring

router = APIRouter(prefix="/v1", tags=["rollouts"])
RolloutPath = Annotated[str, Path(max_length=64, examples=["9f2c41d07ab3"])]
Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]


def _controller(request: Request) -> Controller:
    return cast(Controller, request.app.state.controller)


UsedController = Annotated[Controller, Depends(_controller)]


def _author(operator: Operator, correlation_id: CorrelationId) -> Author:
    return Author(operator.name, correlation_id)


ThisAuthor = Annotated[Author, Depends(_author)]


def _own_rollout(
    rollout: RolloutPath, operator: Operator, database: UsedDatabase, settings: UsedSettings
) -> None:
    """Refuse a rollout whose model is not one of a limited token's."""
    if operator.models:
        with database.reading() as session:
            operator.require_model(service.get(session, settings.fleet, rollout).model)


OWN = [Depends(_own_rollout)]


def _plan(body: PlanBody) -> RolloutPlan:
    return plans.template(body.template) if body.plan is None else plans.read(body.plan)


@router.post("/rollouts", status_code=201, summary="Create a rollout")
def create_rollout(
    body: RolloutBody,
    operator: Operator,
    author: ThisAuthor,
    database: UsedDatabase,
    settings: UsedSettings,
    clock: UsedClock,
    controller: UsedController,
    response: Response,
) -> RolloutBrief:
    """A draft; with `start` it begins at once. A cohort that runs nothing of the model yet gets
    the plan's full stage alone: there is nothing to compare with.
    """
    operator.require_model(body.model)
    with database.transaction() as session:
        now_ms = clock.now_ms()
        row = service.create(
            session,
            fleet=settings.fleet,
            cohort=body.cohort,
            model=body.model,
            version=body.version,
            plan=_plan(body),
            random=clock.random_bytes(service.ID_BYTES),
            author=author,
            now_ms=now_ms,
        )
        if body.start:
            row = service.start(
                session,
                fleet=settings.fleet,
                rollout=row.id,
                random=clock.random_bytes(service.SALT_BYTES),
                author=author,
                now_ms=now_ms,
            )
        shown = views.brief(row)
    controller.wake()
    response.headers["Location"] = f"/v1/rollouts/{shown.id}"
    return RolloutBrief.model_validate(shown)


@router.post("/rollouts/plan", summary="Try a plan without starting anything")
def try_plan(
    body: PlanBody, operator: Operator, database: UsedDatabase, settings: UsedSettings
) -> PlanShown:
    """How many devices each stage has, and how the error probability is spent."""
    operator.require_model(body.model)
    with database.reading() as session:
        found = views.preview(session, settings.fleet, body.cohort, body.model, _plan(body))
    return PlanShown.model_validate(found)


@router.get("/rollouts", summary="The newest rollouts first")
def list_rollouts(
    operator: Operator,
    database: UsedDatabase,
    settings: UsedSettings,
    count: Annotated[int, Query(ge=1, le=1_000)] = 50,
) -> list[RolloutBrief]:
    """In whichever state they are; of a limited token, those of its own models."""
    with database.reading() as session:
        rows = service.newest(session, settings.fleet, count=count)
        found = [views.brief(row) for row in rows if operator.sees(row.model)]
    return [RolloutBrief.model_validate(item) for item in found]


@router.get("/rollouts/{rollout}", dependencies=OWN, summary="Everything about a rollout")
def show_rollout(
    rollout: RolloutPath,
    _operator: Operator,
    database: UsedDatabase,
    settings: UsedSettings,
    clock: UsedClock,
    controller: UsedController,
) -> RolloutShown:
    """Stages, exposure, the newest gate results, and the evidence of every decision."""
    with database.reading() as session:
        row = service.get(session, settings.fleet, rollout)
        shown = views.view(session, row, controller.cache, now_ms=clock.now_ms())
    return RolloutShown.model_validate(shown)


@router.get("/rollouts/{rollout}/explain", dependencies=OWN, summary="Why it stands where it does")
def explain_rollout(
    rollout: RolloutPath,
    operator: Operator,
    database: UsedDatabase,
    settings: UsedSettings,
    clock: UsedClock,
    controller: UsedController,
) -> Explanation:
    """In sentences, with figures."""
    shown = show_rollout(rollout, operator, database, settings, clock, controller)
    return Explanation(id=rollout, explanation=shown.explanation)


@router.post("/rollouts/{rollout}/start", dependencies=OWN, summary="Start a draft")
def start_rollout(
    rollout: RolloutPath,
    author: ThisAuthor,
    database: UsedDatabase,
    settings: UsedSettings,
    clock: UsedClock,
    controller: UsedController,
) -> RolloutBrief:
    """Membership is frozen and the salt drawn; the first stage begins within moments."""
    with database.transaction() as session:
        row = service.start(
            session,
            fleet=settings.fleet,
            rollout=rollout,
            random=clock.random_bytes(service.SALT_BYTES),
            author=author,
            now_ms=clock.now_ms(),
        )
        shown = views.brief(row)
    controller.wake()
    return RolloutBrief.model_validate(shown)


@router.post("/rollouts/{rollout}/pause", dependencies=OWN, summary="Let nobody start who has not")
def pause_rollout(
    rollout: RolloutPath,
    author: ThisAuthor,
    database: UsedDatabase,
    keyring: UsedKeyring,
    clock: UsedClock,
    controller: UsedController,
    wake_publisher: WakePublisher,
) -> RolloutBrief:
    """Devices that have started go on; a failing gate still rolls back."""
    with database.transaction() as session:
        row = service.pause(
            session,
            keyring,
            controller.cache,
            rollout=rollout,
            author=author,
            now_ms=clock.now_ms(),
        )
        shown = views.brief(row)
    wake_publisher()
    return RolloutBrief.model_validate(shown)


@router.post(
    "/rollouts/{rollout}/resume", dependencies=OWN, summary="Go on where it was paused or held"
)
def resume_rollout(
    rollout: RolloutPath,
    author: ThisAuthor,
    database: UsedDatabase,
    keyring: UsedKeyring,
    clock: UsedClock,
    controller: UsedController,
    wake_publisher: WakePublisher,
) -> RolloutBrief:
    """The stage gets its whole deadline again."""
    with database.transaction() as session:
        row = service.resume(
            session,
            keyring,
            controller.cache,
            rollout=rollout,
            author=author,
            now_ms=clock.now_ms(),
        )
        shown = views.brief(row)
    wake_publisher()
    controller.wake()
    return RolloutBrief.model_validate(shown)


@router.post("/rollouts/{rollout}/abort", dependencies=OWN, summary="Cancel what is outstanding")
def abort_rollout(
    rollout: RolloutPath,
    author: ThisAuthor,
    database: UsedDatabase,
    keyring: UsedKeyring,
    clock: UsedClock,
    controller: UsedController,
    wake_publisher: WakePublisher,
) -> RolloutBrief:
    """Devices that have changed stay as they are; roll back to bring those back."""
    with database.transaction() as session:
        row = service.abort(
            session,
            keyring,
            controller.cache,
            rollout=rollout,
            author=author,
            now_ms=clock.now_ms(),
        )
        shown = views.brief(row)
    wake_publisher()
    return RolloutBrief.model_validate(shown)


@router.post("/rollouts/{rollout}/rollback", dependencies=OWN, summary="Bring back what ran before")
def roll_back_rollout(
    rollout: RolloutPath,
    body: RollbackBody,
    author: ThisAuthor,
    database: UsedDatabase,
    keyring: UsedKeyring,
    clock: UsedClock,
    controller: UsedController,
    wake_publisher: WakePublisher,
) -> RolloutBrief:
    """One signed message to warm standbys, from running, paused, aborted or completed."""
    with database.transaction() as session:
        row = service.roll_back(
            session,
            keyring,
            controller.cache,
            rollout=rollout,
            reason=body.reason,
            author=author,
            now_ms=clock.now_ms(),
        )
        shown = views.brief(row)
    wake_publisher()
    controller.wake()
    return RolloutBrief.model_validate(shown)


@router.get(
    "/evidence/{digest}",
    summary="The inputs of a decision",
    response_class=Response,
    responses={200: {"content": {"application/msgpack": {}}}},
)
def read_inputs(digest: Digest, _operator: Operator, database: UsedDatabase) -> Response:
    """MessagePack of the snapshot, addressed by its SHA-256: the decision can be repeated."""
    with database.reading() as session:
        body = service.inputs(session, digest)
    return Response(body, media_type="application/msgpack")


@router.get("/cohort-releases", summary="What each cohort runs")
def list_cohort_releases(
    operator: Operator, database: UsedDatabase, settings: UsedSettings
) -> list[CohortReleaseShown]:
    """The release that a completed rollout left, per cohort and model."""
    with database.reading() as session:
        rows = service.cohort_releases(session, settings.fleet)
        own = [row for row in rows if operator.sees(row.model)]
        return [CohortReleaseShown.model_validate(row) for row in own]


@router.get(
    "/models/{model}/releases/{version}/report",
    summary="The compliance report of a release",
    tags=["audit"],
)
def report_release(
    model: ModelName,
    version: Version,
    _operator: Operator,
    database: UsedDatabase,
    settings: UsedSettings,
) -> ComplianceReport:
    """Provenance as far as it is known, gates, approvals, exposure, rollbacks, and the audit."""
    with database.reading() as session:
        found = compliance.report(session, settings.fleet, model, version)
    return ComplianceReport.model_validate(found)
