"""Mutants of the ordered checks: each is the project's own code with one check taken out.

A mutant replaces a piece of one function's source and runs the rest as it stands, in the function's
own module, so that everybody who calls it meets the mutant. Which attacks must notice is the
business of tests/attacks/test_every_check_counts.py.
"""

from __future__ import annotations
import __future__

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

CHECKS = "fleet_contract.trust.checks"
ENVELOPE = "fleet_contract.trust.envelope"
KEYSET = "fleet_contract.trust.keyset"
ADMISSION = "device_agent.core.admission"


@dataclass(frozen=True)
class Mutant:
    """``check`` is the number in the ordered list or the name of a check of what exists; ``piece``
    must occur exactly once in the source of ``function`` (a method as ``Class.method``)."""

    check: str
    module: str
    function: str
    piece: str
    instead: str

    def __str__(self) -> str:
        return f"{self.check}: {self.function} without {' '.join(self.piece.split())[:60]}"


@contextmanager
def alive(mutant: Mutant) -> Iterator[None]:
    """Let the mutant live in this process, and put the real code back at the end.

    The function stays the same object, so that it does not matter who has imported it.
    """
    owner: Any = importlib.import_module(mutant.module)
    *path, name = mutant.function.split(".")
    for part in path:
        owner = getattr(owner, part)
    # A context manager or a static method is a wrapper: the code is in what it wraps.
    function: FunctionType = inspect.unwrap(getattr(owner, name))
    real = function.__code__
    function.__code__ = _compiled(mutant, function)
    try:
        yield
    finally:
        function.__code__ = real


def _compiled(mutant: Mutant, function: FunctionType) -> CodeType:
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(mutant.piece) == 1, (
        f"{mutant.module}.{mutant.function} has changed: {mutant.piece!r} is there "
        f"{source.count(mutant.piece)} times; say anew what the check is"
    )
    tree = ast.parse(source.replace(mutant.piece, mutant.instead))
    (node,) = tree.body
    assert isinstance(node, ast.FunctionDef)
    node.decorator_list = []
    found: dict[str, Any] = {}
    # The same globals and flags (deferred annotations) as the function has.
    flags = function.__code__.co_flags & __future__.annotations.compiler_flag
    code = compile(tree, f"<mutant of {mutant.function}>", "exec", flags=flags, dont_inherit=True)
    exec(code, function.__globals__, found)
    mutated: FunctionType = found[node.name]
    return mutated.__code__


def _without_raise(check: str, module: str, function: str, condition: str) -> Mutant:
    """A mutant in which a condition that leads to a refusal never holds."""
    return Mutant(check, module, function, condition, "if False:")


DOCUMENTS = [
    _without_raise("1 size", "fleet_contract.codec", "_bound", "if len(data) > limit_bytes:"),
    Mutant(
        "2 key id", ENVELOPE, "unseal", "if not known:", "if not known:\n        return payload"
    ),
    _without_raise(
        "2 payload type", ENVELOPE, "unseal", "if envelope.payload_type != payload_type:"
    ),
    Mutant(
        "2 key id is that of its key",
        KEYSET,
        "read_keyset",
        "envelope.key_id(bytes.fromhex(key.public)) != key.keyid",
        "False",
    ),
    Mutant(
        "3 signature",
        ENVELOPE,
        "unseal",
        "if _verifies(keys[signature.keyid], _decode_base64(signature.sig), encoded):",
        "if True:",
    ),
    Mutant(
        "3 signature covers the payload",
        ENVELOPE,
        "pre_authentication_encoding",
        "% (len(kind), kind, len(payload), payload)",
        '% (len(kind), kind, 0, b"")',
    ),
    Mutant(
        "3 signature covers the type",
        ENVELOPE,
        "pre_authentication_encoding",
        "kind = payload_type.encode()",
        'kind = b"any"',
    ),
    *(
        Mutant(
            f"4 audience: {part} of a directive",
            CHECKS,
            "check_directive",
            "Audience(directive.fleet, directive.cohort, directive.model)",
            whole.replace(f"directive.{part}", f"audience.{part}"),
        )
        for whole in ("Audience(directive.fleet, directive.cohort, directive.model)",)
        for part in ("fleet", "cohort", "model")
    ),
    Mutant(
        "4 audience: cohort of the topic",
        ADMISSION,
        "_directive",
        "(fleet, cohort) != (record.fleet, assignment.cohort)",
        "False",
    ),
    *(
        Mutant(
            f"4 audience: {part} of an assignment",
            CHECKS,
            "check_assignment",
            "if (assignment.fleet, assignment.device) != (fleet, device):",
            f"if assignment.{other} != {other}:",
        )
        for part, other in (("fleet", "device"), ("device", "fleet"))
    ),
    _without_raise("4 audience: fleet of a stop", CHECKS, "check_stop", "if stop.fleet != fleet:"),
    _without_raise(
        "4 audience: fleet of a keyset", KEYSET, "read_keyset", "if keyset.fleet != fleet:"
    ),
    _without_raise(
        "5 generation: left", CHECKS, "check_generation", "if generation < keyset.generation:"
    ),
    _without_raise(
        "5 generation: unconfirmed",
        CHECKS,
        "check_generation",
        "if generation > keyset.generation:",
    ),
    *(
        Mutant(
            f"5 generation of {kind}",
            CHECKS,
            f"check_{kind}",
            f"check_generation({kind}.generation, keyset)",
            "pass",
        )
        for kind in ("directive", "assignment", "stop")
    ),
    _without_raise(
        "5 generation: below the one accepted",
        CHECKS,
        "_check_epoch",
        "if held is not None and generation < held.generation:",
    ),
    Mutant(
        "5 generation of the keyset",
        KEYSET,
        "read_keyset",
        "keyset.generation < held.generation",
        "False",
    ),
    Mutant(
        "6 epoch: floor of the keyset",
        CHECKS,
        "check_directive",
        "max(minimum_epoch, keyset.epoch_floor)",
        "minimum_epoch",
    ),
    *(
        Mutant(
            f"6 epoch: floor for {kind}",
            CHECKS,
            f"check_{kind}",
            "held, keyset.epoch_floor",
            "held, 0",
        )
        for kind in ("assignment", "stop")
    ),
    Mutant(
        "6 epoch: floor of the keyset may not fall",
        KEYSET,
        "read_keyset",
        "keyset.epoch_floor < held.epoch_floor",
        "False",
    ),
    Mutant(
        "6 epoch: minimum of the assignment",
        CHECKS,
        "check_directive",
        "max(minimum_epoch, keyset.epoch_floor)",
        "keyset.epoch_floor",
    ),
    Mutant(
        "6 epoch: the one held", CHECKS, "_check_epoch", "floor = max(floor, held.epoch)", "pass"
    ),
    _without_raise("6 epoch: never back", CHECKS, "_check_epoch", "if epoch < floor:"),
    _without_raise(
        "6 epoch: equivocation",
        CHECKS,
        "_check_epoch",
        "if epoch == held.epoch and acceptance.digest != held.digest:",
    ),
    _without_raise(
        "7 expiry",
        CHECKS,
        "check_directive",
        "if not repeated and now_ms >= directive.expires_ms:",
    ),
    Mutant(
        "7 expiry: at the start of a transition",
        "device_agent.core.pursuit",
        "_waits",
        "_expired(turn, model)",
        "False",
    ),
    Mutant(
        "7 expiry: time floor",
        ADMISSION,
        "_accept",
        "max(turn.record.time_floor_ms, issued_ms)",
        "turn.record.time_floor_ms",
    ),
    Mutant(
        "8 persist: at all",
        "device_agent.core.turn",
        "Turn.end",
        "first = [Persist(self.record)]",
        "pass",
    ),
    Mutant(
        "8 persist: before acting",
        "device_agent.core.turn",
        "Turn.end",
        "first + self.effects",
        "self.effects + first",
    ),
    Mutant(
        "8 persist: the acceptance",
        ADMISSION,
        "_accept",
        "acceptances=acceptances",
        "acceptances=turn.record.acceptances",
    ),
]
