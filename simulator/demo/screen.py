"""What the demo says in the terminal while it runs: one line a fact, and one line that lives.

Decides the form only. Without a terminal (a log, CI) the living line is left out.
"""

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from simulator import clock

_MARKS = {"good": "green", "bad": "red", "plain": "default", "soft": "bright_black"}


class Screen:
    """Writes to standard output; times count from its making."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._started_s = clock.monotonic_s()
        self._status: Status | None = None

    @property
    def elapsed_s(self) -> float:
        """Return the seconds since the demo began."""
        return clock.monotonic_s() - self._started_s

    def say(self, text: str, mark: str = "plain") -> None:
        """Write a line with the time."""
        self._console.print(
            f"[bright_black]{self.elapsed_s:6.1f} s[/]  [{_MARKS[mark]}]{escape(text)}[/]"
        )

    def heading(self, text: str) -> None:
        """Write a line that opens a chapter."""
        self._console.print(f"\n[bold]{escape(text)}[/]")

    def plain(self, text: str = "", mark: str = "plain") -> None:
        """Write a line without the time."""
        self._console.print(f"[{_MARKS[mark]}]{escape(text)}[/]")

    def now(self, text: str) -> None:
        """Change the line that lives below the others."""
        if not self._console.is_terminal:
            return
        if self._status is None:
            self._status = self._console.status(escape(text), spinner="dots")
            self._status.start()
        self._status.update(escape(text))

    def quiet(self) -> None:
        """Take the living line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None
