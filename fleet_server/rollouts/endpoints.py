"""Rollouts over HTTP: what operators do and see. Nothing is decided here."""

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from fleet_server.access.authentication import Operator
from fleet_server.request_context import (
    CorrelationId,
    UsedClock,
    UsedDatabase,
    UsedSettings,
    WakePublisher,
)
from fleet_server.rollouts import plan as plans
from fleet_server.rollouts import service, views
from fleet_server.rollouts.applying import Author
from fleet_server.rollouts.controller import Controller
from fleet_server.rollouts.plan import RolloutPlan
from fleet_server.rollouts.schemas import (
    CohortReleaseShown,
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


def _plan(body: PlanBody) -> RolloutPlan:
    return plans.template(body.template) if body.plan is None else plans.read(body.plan)


@router.post("/rollouts", status_code=201, summary="Create a rollout")
def create_rollout(
    body: RolloutBody,
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
    body: PlanBody, _operator: Operator, database: UsedDatabase, settings: UsedSettings
) -> PlanShown:
    """How many devices each stage has, and how the error probability is spent."""
    with database.reading() as session:
        found = views.preview(session, settings.fleet, body.cohort, body.model, _plan(body))
    return PlanShown.model_validate(found)


@router.get("/rollouts", summary="The newest rollouts first")
def list_rollouts(
    _operator: Operator,
    database: UsedDatabase,
    settings: UsedSettings,
    count: Annotated[int, Query(ge=1, le=1_000)] = 50,
) -> list[RolloutBrief]:
    """In whichever state they are."""
    with database.reading() as session:
        found = [views.brief(row) for row in service.newest(session, settings.fleet, count=count)]
    return [RolloutBrief.model_validate(item) for item in found]


@router.get("/rollouts/{rollout}", summary="Everything about a rollout")
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


@router.get("/rollouts/{rollout}/explain", summary="Why it stands where it does")
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


@router.post("/rollouts/{rollout}/start", summary="Start a draft")
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


@router.post("/rollouts/{rollout}/pause", summary="Let nobody start who has not")
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


@router.post("/rollouts/{rollout}/resume", summary="Go on where it was paused or held")
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


@router.post("/rollouts/{rollout}/abort", summary="Cancel what is outstanding")
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


@router.post("/rollouts/{rollout}/rollback", summary="Bring back what ran before")
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
    _operator: Operator, database: UsedDatabase, settings: UsedSettings
) -> list[CohortReleaseShown]:
    """The release that a completed rollout left, per cohort and model."""
    with database.reading() as session:
        rows = service.cohort_releases(session, settings.fleet)
        return [CohortReleaseShown.model_validate(row) for row in rows]
