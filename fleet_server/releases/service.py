"""What a release is and may become: registered, staged or refused, and never changed after.

Decides which versions may be pushed and what rollouts and telemetry see of a release. How a
release is made is in :mod:`fleet_server.releases.pipeline`.
"""

from collections.abc import Mapping, Sequence

import msgspec
from sqlmodel import Session

from fleet_contract import codec
from fleet_contract.features import FeatureSchema
from fleet_contract.manifest import Baseline, Manifest
from fleet_server.audit import service as audit
from fleet_server.errors import Conflict, NotFound
from fleet_server.provenance.policy import Origin
from fleet_server.releases import repository
from fleet_server.releases.records import (
    ReleaseRecord,
    ReleaseView,
    read_manifest,
    read_record,
    read_steps,
    read_view,
)
from fleet_server.releases.repository import Row
from fleet_server.releases.states import Problem, ReleaseState, Step
from fleet_server.releases.uploads import Upload


def staged_release(session: Session, model: str, version: str) -> ReleaseView:
    """Return a release that may be rolled out.

    Raises:
        NotFound: if there is no such release.
        Conflict: if it is still being staged or signed, was refused, or is revoked.
    """
    row = _need(repository.find(session, model, version), model, version)
    if row.state == ReleaseState.STAGING:
        raise Conflict(
            "release_not_staged",
            f"{model} {version} is still being staged.",
            f"Wait for it: edgefleet model show {model} {version}",
        )
    if row.state == ReleaseState.UNSIGNED:
        raise Conflict(
            "release_unsigned",
            f"{model} {version} waits for the signature of whoever holds its family's key.",
            f"Sign it: edgefleet model sign {model} {version} --key FILE",
        )
    if row.state == ReleaseState.REVOKED:
        raise _revoked(model, version)
    if row.state == ReleaseState.REFUSED:
        raise Conflict(
            "release_refused",
            f"{model} {version} was refused at staging.",
            f"See why: edgefleet model show {model} {version}",
        )
    return read_view(row)


def release_by_digest(session: Session, digest: str) -> ReleaseView:
    """Return the staged release with this manifest digest.

    Raises:
        NotFound: if there is none.
    """
    row = repository.find_digest(session, digest)
    if row is None:
        raise NotFound("no_such_release", f"There is no release with digest {digest[:12]}….")
    return read_view(row)


def check_not_revoked(session: Session, digest: str) -> None:
    """Check that devices may go to the release with this digest.

    Raises:
        Conflict: if it is revoked.
    """
    row = repository.find_digest(session, digest)
    if row is not None and row.state == ReleaseState.REVOKED:
        raise _revoked(row.model, row.version)


def newest_digests(session: Session, count: int) -> dict[str, list[str]]:
    """Return each model's newest staged releases by manifest digest, the newest first."""
    return {
        model: repository.newest_staged_digests(session, model, count)
        for model in repository.staged_models(session)
    }


def schema_of(session: Session, digest: str) -> FeatureSchema | None:
    """Return the feature schema of the release with this manifest digest, None if unknown."""
    row = repository.find_digest(session, digest)
    return None if row is None else read_manifest(row).features


def check_free(session: Session, model: str, version: str) -> None:
    """Check that this version may be pushed.

    Raises:
        Conflict: if it is staged or being staged: versions never change.
    """
    row = repository.find(session, model, version)
    if row is not None and row.state != ReleaseState.REFUSED:
        doing = "is being staged" if row.state == ReleaseState.STAGING else "exists"
        raise Conflict(
            "version_exists",
            f"Release {version} of {model} {doing}; a version never changes.",
            "Push it under a new version.",
        )


def register(
    session: Session,
    upload: Upload,
    *,
    user: str,
    correlation_id: str,
    now_ms: int,
    origin: Origin | None = None,
) -> ReleaseRecord:
    """Write down an upload whose files lie safely on disk; staging may begin after the commit.

    Raises:
        Conflict: if the version is staged or being staged, or another was pushed at the same
            moment.
    """
    model, version = upload.options.model, upload.options.version
    check_free(session, model, version)
    row = Row(
        model=model,
        version=version,
        counter=repository.highest_counter(session, model) + 1,
        state=ReleaseState.STAGING.value,
        pushed_by=user,
        correlation_id=correlation_id,
        received_ms=now_ms,
        changed_ms=now_ms,
        attempts=0,
        upload=upload.folder,
        source_digest=upload.source_digest,
        source_bytes=upload.source_bytes,
        options=codec.encode_json(upload.options).decode(),
        steps="[]",
        origin=None if origin is None else codec.encode_json(origin).decode(),
    )
    # What was refused under this version makes room; the audit keeps it.
    repository.remove(session, model, version)
    if not repository.add(session, row):
        raise Conflict(
            "pushed_at_once",
            f"Another release of {model} was pushed at the same moment.",
            "Push it again; if it was this version, it is there.",
        )
    signed = None if origin is None else msgspec.to_builtins(origin)
    relaxed = upload.options.relaxed()
    detail: dict[str, object] = {"source": upload.source_digest, "signature": signed}
    if relaxed:
        detail["gates_relaxed"] = relaxed
    _audit(session, row, "release.push", "accepted", detail, now_ms, skipped=list(relaxed))
    return read_record(row)


def begin(session: Session, model: str, version: str, *, now_ms: int) -> ReleaseRecord:
    """Count one more attempt at staging and forget the steps of the one before.

    Raises:
        NotFound: if there is no such release.
        Conflict: if its staging has ended: what came of it stays.
    """
    row = _need(repository.lock(session, model, version), model, version)
    if row.state != ReleaseState.STAGING:
        raise Conflict("not_staging", f"Release {version} of {model} is {row.state} already.")
    row.attempts += 1
    row.steps = "[]"
    row.changed_ms = now_ms
    repository.save(session, row)
    return read_record(row)


def postpone(session: Session, model: str, version: str) -> None:
    """Take back an attempt that ended because the server was asked to stop."""
    row = _need(repository.lock(session, model, version), model, version)
    row.attempts -= 1
    repository.save(session, row)


def add_step(session: Session, model: str, version: str, step: Step, *, now_ms: int) -> None:
    """Note a finished step, for those who watch."""
    row = _need(repository.lock(session, model, version), model, version)
    row.steps = codec.encode_json([*read_steps(row), step]).decode()
    row.changed_ms = now_ms
    repository.save(session, row)


def mark_staged(
    session: Session,
    model: str,
    version: str,
    *,
    digest: str,
    manifest: Manifest,
    baseline: Baseline,
    statement: str,
    card: str,
    vouched: bool,
    now_ms: int,
) -> None:
    """Make the release one that may be rolled out: its files are in the store.

    Unless it is not ``vouched`` for yet: then it waits for :func:`mark_signed`.
    """
    row = _need(repository.lock(session, model, version), model, version)
    row.state = (ReleaseState.STAGED if vouched else ReleaseState.UNSIGNED).value
    row.digest = digest
    row.provenance = statement
    row.card = card
    row.manifest = codec.encode_json(manifest)
    row.baseline = codec.encode_msgpack(baseline)
    row.changed_ms = now_ms
    repository.save(session, row)
    artifacts = {item.name: item.artifact.digest for item in manifest.variants}
    main = manifest.variants[-1].artifact.digest
    detail: dict[str, object] = {"manifest": digest, "artifact": main, "counter": row.counter}
    if len(artifacts) > 1:
        detail["artifacts"] = artifacts
    detail |= {"provenance": statement, "card": card}
    _audit(session, row, "release.stage", row.state, detail, now_ms)


def unsigned(session: Session) -> list[ReleaseRecord]:
    """Return what waits for a family's signature, in the order of arrival."""
    return [read_record(row) for row in repository.in_state(session, ReleaseState.UNSIGNED)]


def mark_signed(session: Session, model: str, version: str, *, now_ms: int) -> None:
    """Make a release that waited for its signature one that may be rolled out."""
    row = _need(repository.lock(session, model, version), model, version)
    if row.state == ReleaseState.UNSIGNED:
        row.state = ReleaseState.STAGED.value
        row.changed_ms = now_ms
        repository.save(session, row)
        _audit(session, row, "release.sign", "staged", {"manifest": row.digest}, now_ms)


def mark_revoked(session: Session, model: str, versions: Sequence[str], *, now_ms: int) -> None:
    """Let no rollout go to these releases any more; what runs is not touched."""
    for version in versions:
        row = _need(repository.lock(session, model, version), model, version)
        row.state = ReleaseState.REVOKED.value
        row.changed_ms = now_ms
        repository.save(session, row)


def mark_refused(
    session: Session, model: str, version: str, problem: Problem, *, now_ms: int
) -> None:
    """Say why the release will not be staged; the version may be pushed again."""
    row = _need(repository.lock(session, model, version), model, version)
    row.state = ReleaseState.REFUSED.value
    row.problem = codec.encode_json(problem).decode()
    row.changed_ms = now_ms
    repository.save(session, row)
    detail = {"gate": problem.gate, "code": problem.code, "detail": problem.detail}
    _audit(session, row, "release.stage", "refused", detail, now_ms)


def unfinished(session: Session) -> list[ReleaseRecord]:
    """Return what was being staged when the server stopped, in the order of arrival."""
    return [read_record(row) for row in repository.in_state(session, ReleaseState.STAGING)]


def inherited_schema(session: Session, model: str) -> Manifest | None:
    """Return the newest manifest, whose feature schema the next release takes over."""
    row = repository.newest_sealed(session, model)
    return None if row is None else read_manifest(row)


def production_release(session: Session, model: str) -> Manifest | None:
    """Return the release that a new one is measured against.

    It is the last that came into production; of a model without one, the newest that may be rolled
    out.
    """
    promoted = repository.production_digests(session, model, 1)
    row = (
        repository.find_digest(session, promoted[0])
        if promoted
        else repository.newest_staged(session, model)
    )
    return None if row is None else read_manifest(row)


def newest_card(session: Session, model: str) -> str | None:
    """Return the digest of the card of the release that the next one follows."""
    row = repository.newest_sealed(session, model)
    return None if row is None else row.card


def get(session: Session, model: str, version: str) -> ReleaseRecord:
    """Return a release in any state.

    Raises:
        NotFound: if there is none.
    """
    return read_record(_need(repository.find(session, model, version), model, version))


def of_model(session: Session, model: str) -> list[ReleaseRecord]:
    """Return a model's releases, the newest first.

    Raises:
        NotFound: if nothing was ever pushed under this name.
    """
    rows = repository.of_model(session, model)
    if not rows:
        raise NotFound(
            "no_such_model", f"There is no model {model}.", "List them: edgefleet model list"
        )
    return [read_record(row) for row in rows]


def models(session: Session) -> dict[str, list[ReleaseRecord]]:
    """Return every model's releases, the oldest first."""
    found: dict[str, list[ReleaseRecord]] = {}
    for row in repository.everything(session):
        found.setdefault(row.model, []).append(read_record(row))
    return found


def _revoked(model: str, version: str) -> Conflict:
    return Conflict(
        "release_revoked",
        f"{model} {version} was revoked: no device goes to it any more.",
        "Choose a newer release, or push it again under a new version.",
    )


def _need(row: Row | None, model: str, version: str) -> Row:
    if row is None:
        raise NotFound(
            "no_such_release",
            f"There is no release {version} of {model}.",
            f"List them: edgefleet model list {model}",
        )
    return row


def _audit(
    session: Session,
    row: Row,
    action: str,
    outcome: str,
    detail: Mapping[str, object],
    now_ms: int,
    *,
    skipped: Sequence[str] = (),
) -> None:
    audit.record(
        session,
        action=action,
        resource_type="release",
        resource_name=f"{row.model}/{row.version}",
        outcome=outcome,
        user=row.pushed_by if action == "release.push" else audit.SYSTEM,
        correlation_id=row.correlation_id,
        detail=detail,
        now_ms=now_ms,
        model_name=row.model,
        model_version=row.version,
        skipped_safeguards=skipped,
    )
