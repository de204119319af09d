"""Which authorities issue, which are believed, and which are remembered for renewal only.

Decides how a rotation goes on. There are two lines of authorities: ``device`` issues who clients
are, ``server`` vouches for the server and the broker. In each line one issues. An older one is
believed until the rotation is finished. After that, or at once if its key was stolen, an authority
of devices is good for one thing: a certificate that is written down and not revoked may renew.
"""

from enum import StrEnum

import msgspec

from fleet_server.errors import Conflict


class Line(StrEnum):
    """What an authority is for."""

    DEVICE = "device"
    SERVER = "server"


class Standing(StrEnum):
    """What is believed of an authority."""

    ISSUES = "issues"
    BELIEVED = "believed"
    RENEWS = "renews"


class Member(msgspec.Struct, frozen=True):
    """One authority: the stem of its files, and where it stands."""

    name: str
    standing: Standing


class Authorities(msgspec.Struct, frozen=True):
    """Both lines, the oldest first."""

    device: list[Member]
    server: list[Member]

    def line(self, line: Line) -> list[Member]:
        """Return one of the lines."""
        return self.device if line is Line.DEVICE else self.server

    def issuing(self, line: Line) -> Member:
        """Return who issues."""
        return next(item for item in self.line(line) if item.standing is Standing.ISSUES)

    def believed(self, line: Line) -> list[Member]:
        """Return whose certificates are believed, the newest first."""
        return [item for item in reversed(self.line(line)) if item.standing is not Standing.RENEWS]

    def next_name(self, line: Line) -> str:
        """Return a name that no authority of this line has had."""
        newest = self.line(line)[-1].name if self.line(line) else f"{line}-0"
        return f"{line}-{int(newest.rpartition('-')[2]) + 1}"

    def rotated(self, line: Line, *, stolen: bool) -> "Authorities":
        """Return the lines with a new authority that issues."""
        if len(self.believed(line)) > 1:
            raise Conflict(
                "rotation_unfinished",
                f"A rotation of the {line} authority is under way.",
                f"Finish it first: edgefleet trust rotate {WORDS[line]} --finish.",
            )
        older = Standing.RENEWS if stolen else Standing.BELIEVED
        members = [_moved(item, older) for item in self.line(line)]
        return self._with(line, [*members, Member(self.next_name(line), Standing.ISSUES)])

    def finished(self, line: Line) -> "Authorities":
        """Return the lines with nobody believed but who issues.

        Raises:
            Conflict: if there is nothing to finish.
        """
        if len(self.believed(line)) < 2:
            raise Conflict(
                "no_rotation",
                f"No rotation of the {line} authority is under way.",
                f"Begin one: edgefleet trust rotate {WORDS[line]}.",
            )
        members = [
            item if item.standing is Standing.ISSUES else Member(item.name, Standing.RENEWS)
            for item in self.line(line)
        ]
        if line is Line.SERVER:
            members = [item for item in members if item.standing is Standing.ISSUES]
        return self._with(line, members)

    def _with(self, line: Line, members: list[Member]) -> "Authorities":
        if line is Line.DEVICE:
            return Authorities(members, self.server)
        return Authorities(self.device, members)


WORDS = {Line.DEVICE: "device-ca", Line.SERVER: "broker"}
"""What an operator calls them."""


def _moved(member: Member, older: Standing) -> Member:
    if member.standing is Standing.RENEWS:
        return member
    return Member(member.name, older)
