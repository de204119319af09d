"""People who hold root's and targets' keys, none of which was ever on the server."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from simulator.digits import MODEL
from tests.end_to_end.town import Town


class Holders:
    """Three people with one key of each role, each in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.fresh = folder / "fresh"

    def found(self, town: Town) -> None:
        """Make the keys before the server's first start, and give them out."""
        said = town.edgefleet("trust", "init", "--offline", str(self.fresh), "--json")
        assert len(said.json["keys"]["root"]) == 3
        for role in ("root", "targets"):
            self.take(role)

    def delegate(self, town: Town) -> None:
        """A family is delegated by targets: whose key is elsewhere."""
        said = town.edgefleet("trust", "rotate", "family", MODEL, "--json")
        assert not said.json["committed"]
        self.sign(town)

    def take(self, role: str) -> None:
        """Give the new keys out; the old ones go."""
        for number, path in enumerate(sorted(self.fresh.glob(f"{role}-*.pem")), start=1):
            own = self._folder / f"holder-{number}"
            own.mkdir(exist_ok=True)
            shutil.move(path, own / f"{role}.pem")

    def sign(self, town: Town, *, others: tuple[Path, ...] = ()) -> None:
        """Two of the three sign one after the other, and then nothing waits."""
        for folder in (self._folder / "holder-1", self._folder / "holder-3", *others):
            if _pending(town):
                said = town.edgefleet("trust", "sign", "--keys", str(folder), "--yes")
                assert said.code == 0, said
        assert _pending(town) == []


def _pending(town: Town) -> list[Any]:
    waiting: list[Any] = town.ask("GET", "/v1/trust/status")["pending"]
    return waiting
