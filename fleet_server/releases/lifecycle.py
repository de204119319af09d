"""How far people let a staged release go: staging, production, archived.

One table says which moves there are; whoever may make them is the access domain's matter. Decides
what may be rolled out where, and which releases are kept ready. Archiving takes nothing away from
devices: what they run goes on, and they return to what they hold.
"""

from collections.abc import Mapping, Sequence

from sqlmodel import Session

from fleet_server.audit import service as audit
from fleet_server.errors import Conflict
from fleet_server.releases import repository, service
from fleet_server.releases.gates import production
from fleet_server.releases.records import ReleaseRecord, ReleaseView, read_steps
from fleet_server.releases.states import GateResult, Stage, Step

PRODUCTION_ENVIRONMENT = "production"
KEPT_READY = 3
"""So many of the releases in production, the last promoted first, have their files and patches
ready: the present one, the one to return to, and one more if both turn out bad."""

MOVES: Mapping[str, tuple[frozenset[Stage], Stage]] = {
    "promote": (frozenset({Stage.STAGING}), Stage.PRODUCTION),
    "archive": (frozenset({Stage.STAGING, Stage.PRODUCTION}), Stage.ARCHIVED),
}
"""Move → the stages that it starts from, and the one that it leads to."""


def move(
    session: Session,
    model: str,
    version: str,
    name: str,
    *,
    reason: str,
    user: str,
    correlation_id: str,
    now_ms: int,
    force: bool = False,
) -> ReleaseRecord:
    """Move a release to another stage.

    Args:
        name: of the move, see ``MOVES``.
        reason: why, for the audit.
        force: promote it also if it has not shown what production asks for.

    Raises:
        NotFound: if there is no such release.
        Conflict: if it is not staged, if no such move leads on from where it is, or if it has not
            shown what production asks for.
    """
    # Locked before it is looked at: of two people who move it at once, the second sees the first.
    row = repository.lock(session, model, version)
    view = service.staged_release(session, model, version)
    assert row is not None
    sources, target = MOVES[name]
    if view.stage not in sources:
        where = "archived" if view.stage is Stage.ARCHIVED else f"in {view.stage.value}"
        raise Conflict(
            "wrong_stage",
            f"Release {version} of {model} is {where}: it cannot be {name}d.",
            "A release goes from staging to production and ends archived; push it again under a "
            "new version to begin anew.",
        )
    missing = _missing(read_steps(row)) if target is Stage.PRODUCTION else []
    if missing and not force:
        raise Conflict(
            "not_fit_for_production",
            f"Release {version} of {model} cannot leave staging by gate {missing[0].gate}: "
            f"{missing[0].note}",
            "Push it under a new version with more rows (--baseline), or let somebody with the "
            "permission force-gate promote it: --force.",
        )
    row.stage = target.value
    row.changed_ms = now_ms
    if target is Stage.PRODUCTION:
        row.promoted_ms = now_ms
    repository.save(session, row)
    audit.record(
        session,
        action=f"release.{name}",
        resource_type="release",
        resource_name=f"{model}/{version}",
        outcome=target.value,
        user=user,
        correlation_id=correlation_id,
        detail={"from": view.stage.value, "to": target.value, "manifest": view.digest},
        now_ms=now_ms,
        model_name=model,
        model_version=version,
        reason=reason,
        skipped_safeguards=[f"gate {item.gate}: {item.name}" for item in missing],
    )
    return service.get(session, model, version)


def _missing(steps: Sequence[Step]) -> list[GateResult]:
    noted = [result for step in steps for result in step.gates]
    return [result for result in production.judge(noted) if not result.passed]


def check_may_roll_out(session: Session, release: ReleaseView) -> None:
    """Check that a release is one that may be rolled out in this session's environment.

    Raises:
        Conflict: if it is archived, or not in production where only such releases may go.
    """
    name = f"{release.model} {release.version}"
    if release.stage is Stage.ARCHIVED:
        raise Conflict(
            "release_archived",
            f"{name} is archived: it goes to no device any more.",
            "Choose another release, or push it again under a new version.",
        )
    environment = session.info.get(audit.ENVIRONMENT)
    if environment == PRODUCTION_ENVIRONMENT and release.stage is not Stage.PRODUCTION:
        raise Conflict(
            "release_not_production",
            f"{name} is in staging, and this is a production fleet.",
            f"Let an approver promote it: edgefleet model promote {name} --reason WHY",
        )


def kept_ready(session: Session) -> dict[str, list[str]]:
    """Return, by model, the manifest digests of the releases that are always kept ready."""
    return {
        model: found
        for model in repository.staged_models(session)
        if (found := repository.production_digests(session, model, KEPT_READY))
    }
