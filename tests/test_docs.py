"""Guards the documentation from falling behind: links, targets, commands, options and diagrams.

``python tests/test_docs.py`` writes docs/reference/command-line.md anew; the test fails while the
file differs from what the three programs say about themselves.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from device_agent import command_line as device_agent
from device_agent.core import transitions
from fleet_server.command_line import app as edgefleet
from fleet_server.rollouts import states
from simulator import command_line as simulator

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference" / "command-line.md"
PROGRAMS = ("edgefleet", "device-agent", "fleet-simulator")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


class Option(NamedTuple):
    """An option or an argument of a command, as its help shows it."""

    names: tuple[str, ...]
    value: str
    help: str
    required: bool
    positional: bool


@dataclass(frozen=True)
class Command:
    """A command of one of the programs: its words, what it is for, and what may follow."""

    words: tuple[str, ...]
    help: str
    options: tuple[Option, ...]
    is_group: bool

    @property
    def flags(self) -> dict[str, Option]:
        """Every spelling of every option."""
        return {name: option for option in self.options for name in option.names}


def _documents() -> list[Path]:
    """Every Markdown file under version control, or about to be."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard", "*.md"],
        check=True,
        capture_output=True,
        text=True,
    )
    found = [ROOT / name for name in filter(None, listing.stdout.split("\0"))]
    return [path for path in found if path.is_file()]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _of_typer(command: Any, words: tuple[str, ...]) -> Iterator[Command]:
    context = command.make_context(words[-1], [], resilient_parsing=True)
    options = []
    for parameter in command.params:
        positional = parameter.param_type_name == "argument"
        value = "" if getattr(parameter, "is_flag", False) else (parameter.metavar or "VALUE")
        names = () if positional else (*parameter.opts, *parameter.secondary_opts)
        said = getattr(parameter, "help", None) or ""
        if not positional and parameter.show_default and parameter.default not in (None, False, ""):
            said += f" (default: {parameter.default})"
        options.append(Option(names, value, said, parameter.required, positional))
    inner = getattr(command, "commands", {})
    yield Command(words, command.help or "", tuple(options), bool(inner))
    context.close()
    for name, found in inner.items():
        yield from _of_typer(found, (*words, name))


def _of_argparse(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[Command]:
    inner: dict[str, argparse.ArgumentParser] = {}
    helps: dict[str, str] = {}
    options = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            inner = dict(action.choices)
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            continue
        if action.dest == "help":
            continue
        metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        value = "" if action.nargs == 0 else metavar
        if action.choices:
            value = "|".join(str(choice) for choice in action.choices)
        said = (action.help or "") % {"default": action.default}
        positional = not action.option_strings
        names = tuple(action.option_strings)
        options.append(Option(names, value, said, positional, positional))
    yield Command(words, parser.description or "", tuple(options), bool(inner))
    for name, found in inner.items():
        for command in _of_argparse(found, (*words, name)):
            yield Command(
                command.words, command.help or helps[name], command.options, command.is_group
            )


@cache
def _commands() -> dict[tuple[str, ...], Command]:
    found = [
        *_of_typer(typer.main.get_command(edgefleet), ("edgefleet",)),
        *_of_argparse(device_agent._parser(), ("device-agent",)),
        *_of_argparse(simulator._parser(), ("fleet-simulator",)),
    ]
    return {command.words: command for command in found}


# -- links --------------------------------------------------------------------------------------


def _anchors(path: Path) -> set[str]:
    without_code = _FENCE.sub("", _read(path))
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in _HEADING.findall(without_code)
    }


def test_link_that_leads_nowhere() -> None:
    broken = []
    for document in _documents():
        for link in _LINK.findall(_FENCE.sub("", _read(document))):
            if "://" in link or link.startswith("mailto:"):
                continue
            name, _, anchor = link.partition("#")
            target = document.parent / name if name else document
            if not target.exists() or (anchor and anchor not in _anchors(target)):
                broken.append(f"{document.relative_to(ROOT)}: {link}")
    assert broken == []


def test_page_that_nobody_finds() -> None:
    """Every document of docs/ can be reached from its index."""
    reached: set[Path] = set()
    waiting = [ROOT / "docs" / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        for link in _LINK.findall(_FENCE.sub("", _read(page))):
            name = link.partition("#")[0]
            if name and "://" not in name:
                waiting.append((page.parent / name).resolve())
    lost = {path for path in _documents() if path.is_relative_to(ROOT / "docs")} - reached
    assert {str(path.relative_to(ROOT)) for path in lost} == set()


# -- commands and targets -----------------------------------------------------------------------


def _written(text: str) -> Iterator[str]:
    """Every piece of code in a document: the lines of its fences, and what is in backticks."""
    for language, block in _FENCE.findall(text):
        if language in ("", "sh", "bash", "ini"):
            yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", _FENCE.sub("", text))


def _wrong(line: str) -> str:
    """Say what is wrong with the commands in a line of code, nothing if they exist."""
    for part in re.split(r"&&|\|\|?|;|>", re.split(r"\s#", line, maxsplit=1)[0]):
        try:
            words = shlex.split(part.strip(), comments=True)
        except ValueError:
            continue
        start = next((i for i, w in enumerate(words) if Path(w).name in PROGRAMS), None)
        # A sentence may begin with a program's name; a path to one is a command, too.
        if start is None or any("=" not in word and word != "$" for word in words[:start]):
            continue
        found = _check([Path(words[start]).name, *words[start + 1 :]])
        if found:
            return found
    return ""


def _check(words: list[str]) -> str:
    commands = _commands()
    path: tuple[str, ...] = (words[0],)
    allowed = dict(commands[path].flags)
    rest = words[1:]
    positionals = 0
    while rest:
        word = rest.pop(0)
        if word in ("...", "…", "--help", "-h"):
            continue
        if word.startswith("-") and word != "-":
            name = word.split("=")[0]
            if name not in allowed:
                return f"{' '.join(path)} has no option {name}"
            if allowed[name].value and "=" not in word and rest:
                rest.pop(0)
        elif (*path, word) in commands:
            path = (*path, word)
            allowed = dict(commands[path].flags)
        elif commands[path].is_group:
            # "edgefleet device show/list" and the like would hide a missing command.
            return f"{' '.join(path)} has no command {word}"
        else:
            positionals += 1
    taken = sum(option.positional for option in commands[path].options)
    if positionals > taken:
        return f"{' '.join(path)} takes {taken} words, not {positionals}"
    return ""


def test_command_that_does_not_exist() -> None:
    wrong = [
        f"{document.relative_to(ROOT)}: {line.strip()}: {problem}"
        for document in _documents()
        if document != REFERENCE
        for line in _written(_read(document))
        if (problem := _wrong(line))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        "edgefleet devise list",
        "edgefleet cohort create lab --selector site=lab",
        "edgefleet rollout pause one two",
        ".venv/bin/fleet-simulator demo --keeep",
        "device-agent enroll TOKEN && device-agent walk",
    ],
)
def test_wrong_command_that_passes(line: str) -> None:
    assert _wrong(line)


def test_make_target_that_does_not_exist() -> None:
    makefile = _read(ROOT / "Makefile")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    named = {
        (str(document.relative_to(ROOT)), target)
        for document in _documents()
        for line in _written(_read(document))
        for target in re.findall(r"^\s*make ([a-z-]+)", line)
    }
    ci = _read(ROOT / ".ci" / "run")
    named |= {(".ci/run", target) for target in re.findall(r"^make ([a-z-]+)", ci, re.MULTILINE)}
    assert named
    assert {(name, target) for name, target in named if target not in targets} == set()


# -- what the reference says --------------------------------------------------------------------


def reference() -> str:
    """Return docs/reference/command-line.md as it must be."""
    lines = [
        "# Command line",
        "",
        "Every command and option of the three programs. Written by `python tests/test_docs.py`",
        "from what the programs say about themselves; a test fails while it differs.",
        "",
        "Exit codes of all three: 0 well, 1 something is wrong and the message says what to do, 2",
        "wrong usage. `edgefleet rollout watch --until-done` adds 3 (rolled back) and 4 (held or",
        "aborted); `edgefleet model push --wait` and `import --wait` add 3 (refused), 4 (still",
        "being staged) and 5 (waits for a signature); Ctrl-C is 130. With `--json`, results and",
        "errors are JSON on standard output. Which server is meant, and as whom:",
        "[settings](settings.md).",
    ]
    for command in _commands().values():
        lines += ["", f"{'#' * min(4, 1 + len(command.words))} `{' '.join(command.words)}`", ""]
        lines += [_cell(command.help.split("\b")[0].split("\n\n  ")[0].strip())]
        if command.options:
            lines += ["", "| | |", "|---|---|"]
            lines += [f"| {_spelt(option)} | {_cell(option.help)} |" for option in command.options]
    return "\n".join(lines) + "\n"


def _spelt(option: Option) -> str:
    words = option.value if option.positional else ", ".join(option.names)
    value = "" if option.positional or not option.value else f" {option.value}"
    return f"`{_cell(words + value)}`{' (needed)' if option.required else ''}"


def _cell(text: str) -> str:
    home = str(Path.home())
    return " ".join(text.split()).replace("|", "\\|").replace(home, "~")


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Defaults come from the environment, too."""
    for name in list(os.environ):
        if name.startswith(("EDGEFLEET_", "DEVICE_AGENT_", "XDG_DATA_HOME")):
            monkeypatch.delenv(name)
    return _commands.cache_clear


def test_reference_that_differs_from_the_help(no_settings: Callable[[], None]) -> None:
    no_settings()
    assert _read(REFERENCE) == reference(), "run: python tests/test_docs.py"


def test_option_that_nothing_explains(no_settings: Callable[[], None]) -> None:
    no_settings()
    silent = [
        f"{' '.join(command.words)} {option.names}"
        for command in _commands().values()
        for option in command.options
        if not option.positional and not option.help
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("page", "diagram"),
    [
        ("device-deployment.md", transitions.diagram),
        ("decisions.md", states.diagram),
    ],
)
def test_diagram_that_differs_from_the_table(page: str, diagram: Callable[[], str]) -> None:
    blocks = [
        block
        for language, block in _FENCE.findall(_read(ROOT / "docs" / "internals" / page))
        if language == "mermaid" and block.startswith("stateDiagram")
    ]
    assert blocks == [diagram()]


def test_decision_without_an_entry() -> None:
    folder = ROOT / "docs" / "adr"
    index = _read(folder / "README.md")
    records = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert [name for name in records if f"]({name})" not in index] == []
    assert [int(name[:4]) for name in records] == list(range(1, len(records) + 1))


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
    sys.stdout.write(f"{REFERENCE.relative_to(ROOT)} written\n")
