"""Guards the form of the house: what a reviewer would otherwise have to notice each time.

Import rules are import-linter's (.importlinter), single calls ruff's; here is what neither sees.
"""

from __future__ import annotations

import ast
import configparser
import fnmatch
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fleet_contract", "device_agent", "fleet_server", "simulator")
NAMELESS = {"util", "utils", "common", "helper", "helpers", "manager", "base", "misc"}
MODULE_LINES = 400
# fleet_server's folders that hold no domain: the embedded broker, and the two that see everything.
NOT_A_DOMAIN = {"broker", "command_line", "migrations"}
# What reads, writes or runs without an import that the import contracts would see.
IMPURE_BUILTINS = {"open", "input", "print", "exec", "eval", "compile", "__import__", "breakpoint"}
# Repeatable only with a seed: without an argument they draw from the operating system.
SEEDED = {"default_rng", "SeedSequence", "PCG64", "PCG64DXSM", "Philox", "SFC64", "Random"}


@cache
def _sources() -> tuple[Path, ...]:
    return tuple(sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _tracked() -> Iterator[tuple[str, str]]:
    """Every text file that is under version control: its path and its contents."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing says which files are tracked")
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], check=True, capture_output=True, text=True
    )
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if path.is_file():
            try:
                yield name, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


@cache
def _contracts() -> dict[str, dict[str, list[str]]]:
    """import-linter's contracts by id; each option as its list of lines."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / ".importlinter", encoding="utf-8")
    prefix = "importlinter:contract:"
    return {
        section.removeprefix(prefix): {
            option: [line.strip() for line in text.splitlines() if line.strip()]
            for option, text in parser.items(section)
        }
        for section in parser.sections()
        if section.startswith(prefix)
    }


def _matching(expression: str) -> list[Path]:
    """The modules that an expression of import-linter covers, those inside a package included."""
    pattern = expression.split(".")
    found = []
    for path in _sources():
        parts = _module_name(path).split(".")
        if "**" in pattern:
            fits = fnmatch.fnmatchcase(".".join(parts), expression)
        else:
            fits = len(parts) >= len(pattern) and all(
                fnmatch.fnmatchcase(part, wanted)
                for part, wanted in zip(parts, pattern, strict=False)
            )
        if fits:
            found.append(path)
    return found


def test_packaging_would_shadow_the_library_of_that_name() -> None:
    assert list((ROOT / "packaging").rglob("__init__.py")) == []
    assert not (ROOT / "packaging.py").exists()


def test_wheel_misses_or_adds_a_room() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert tuple(wheel["packages"]) == PACKAGES
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert rooms == set(PACKAGES)


def test_module_that_does_not_say_what_it_decides() -> None:
    silent = [_module_name(path) for path in _sources() if not ast.get_docstring(_tree(path))]
    assert silent == []


def test_module_with_a_name_that_says_nothing() -> None:
    nameless = [
        _module_name(path) for path in _sources() if NAMELESS & set(_module_name(path).split("."))
    ]
    assert nameless == []


def test_module_that_does_not_fit_in_a_head() -> None:
    long = {
        _module_name(path): lines
        for path in _sources()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MODULE_LINES
    }
    assert long == {}, "ask what second thing it does"


def test_package_without_init_escapes_the_import_contracts() -> None:
    folders = {path.parent for path in _sources()}
    bare = [
        str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()
    ]
    # Alembic loads these by path.
    assert [folder for folder in bare if "migrations" not in folder] == []


def test_pure_module_reads_or_writes_without_an_import() -> None:
    calls = [
        f"{_module_name(path)}:{node.lineno} {node.func.id}"
        for expression in _contracts()["pure"]["source_modules"]
        for path in _matching(expression)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in IMPURE_BUILTINS
    ]
    assert calls == []


def test_random_generator_without_a_seed() -> None:
    unseeded = []
    for path in _sources():
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Call) and not node.args and not node.keywords:
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in SEEDED and path.name != "clock.py":
                    unseeded.append(f"{_module_name(path)}:{node.lineno} {name}()")
    assert unseeded == []


def test_import_contract_that_covers_nothing() -> None:
    empty = [
        f"{contract}: {expression}"
        for contract, options in _contracts().items()
        for option in ("source_modules", "protected_modules", "ancestors")
        for expression in options.get(option, [])
        if not _matching(expression)
    ]
    assert empty == []


def test_domain_without_import_contract() -> None:
    domains = {
        path.parent.name
        for path in (ROOT / "fleet_server").glob("*/__init__.py")
        if path.parent.name not in NOT_A_DOMAIN
    }
    layers = " ".join(_contracts()["domains"]["layers"])
    assert domains - set(re.findall(r"\w+", layers)) == set()
    with_tables = {path.parent.name for path in (ROOT / "fleet_server").glob("*/tables.py")}
    protected = {
        contract.removeprefix("tables-")
        for contract in _contracts()
        if contract.startswith("tables-")
    }
    assert with_tables == protected


def test_constraints_record_names_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [
        line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", line)
    ] == []
    names = [line.split("==")[0].lower() for line in pins]
    assert "edgefleet" not in names
    assert len(names) == len(set(names))


def test_tracked_file_that_fits_one_machine_only() -> None:
    machine = re.compile(r"(?<![\w.<>}/-])/(?:home|root|Users|work|workspace)/[\w.]")
    registry = re.compile(r"(?:pypi\.org|pythonhosted|(?:extra-)?index-url)")
    found = [
        f"{name}:{number} {match.group()}"
        for name, contents in _tracked()
        if name != "tests/test_house.py"
        for number, line in enumerate(contents.splitlines(), 1)
        for match in (machine.search(line) or registry.search(line),)
        if match
    ]
    assert found == []
