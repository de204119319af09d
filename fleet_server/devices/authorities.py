"""Rotations of the authorities that issue certificates: how they stand, and each of their steps.

Decides in which order a step happens, and what has to hold before an overlap ends: devices must be
able to fetch the anchors that vouch for what server and broker show next. Devices whose authority
is gone lose their connection at once, and renew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlmodel import Session

from fleet_contract.enrolment import ANCHORS_PATH
from fleet_server.database import Database
from fleet_server.devices import certificate_repository
from fleet_server.errors import Conflict
from fleet_server.trust.authority.authority import Authority
from fleet_server.trust.authority.overview import Known, line_of
from fleet_server.trust.authority.standing import Line, Standing
from fleet_server.trust.catalogue.repository import Catalogue

LISTED = 100
"""Names in one answer."""


@dataclass(frozen=True, slots=True)
class LineState:
    """How one line stands. ``behind`` counts devices whose newest certificate an older authority
    has issued, ``names`` are the first of them."""

    line: Line
    authorities: list[Known]
    overlaps: bool
    behind: int
    names: list[str]


def state_of(session: Session, authority: Authority, fleet: str, line: Line) -> LineState:
    """Return how a line stands. Raises OSError and ValueError if its files cannot be read."""
    known = line_of(authority, line)
    behind: list[str] = []
    if line is Line.DEVICE:
        issuing = next(item for item in known if item.standing is Standing.ISSUES)
        behind = certificate_repository.issued_by_others(session, fleet, issuing.fingerprint)
    overlaps = sum(item.standing is not Standing.RENEWS for item in known) > 1
    return LineState(line, known, overlaps, len(behind), behind[:LISTED])


def begin(
    authority: Authority,
    catalogue: Catalogue,
    line: Line,
    *,
    stolen: bool,
    reload: Callable[[], None],
) -> bool:
    """Make a new authority. A planned rotation believes the old one, too, until :func:`finish`; a
    stolen one is believed no more.

    Returns:
        Whether devices can fetch the anchors; False means that these wait for signatures.

    Raises:
        Conflict: if an earlier rotation is not finished.
        OSError: if it cannot be written.
    """
    authority.rotate(line, stolen=stolen)
    return _take_effect(authority, catalogue, line, reload)


def finish(
    authority: Authority, catalogue: Catalogue, line: Line, *, reload: Callable[[], None]
) -> bool:
    """Believe the new authority alone.

    Returns:
        As :func:`begin`.

    Raises:
        Conflict: if no rotation is under way, or devices cannot know the new anchors yet.
        OSError: if it cannot be written.
    """
    # Published again, if the beginning was cut off before that.
    if line is Line.SERVER and not _publish(authority, catalogue):
        raise Conflict(
            "anchors_unsigned",
            "The anchors with the new authority wait for the signature of targets: devices would "
            "not know this server any more.",
            "Sign them first: edgefleet trust sign --keys DIR.",
        )
    authority.finish(line)
    return _take_effect(authority, catalogue, line, reload)


def behind(database: Database, authority: Authority, fleet: str) -> Sequence[str]:
    """Return the devices whose newest certificate comes from an older authority."""
    with database.reading() as session:
        known = line_of(authority, Line.DEVICE)
        issuing = next(item for item in known if item.standing is Standing.ISSUES)
        return certificate_repository.issued_by_others(session, fleet, issuing.fingerprint)


def _take_effect(
    authority: Authority, catalogue: Catalogue, line: Line, reload: Callable[[], None]
) -> bool:
    published = line is not Line.SERVER or _publish(authority, catalogue)
    reload()
    return published


def _publish(authority: Authority, catalogue: Catalogue) -> bool:
    why = "the authorities that vouch for server and broker"
    return catalogue.publish_document(ANCHORS_PATH, authority.anchors, why=why)
