"""Guards a process with threads from dying when it reads its first documents."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIVES = 6

# All threads read the same types for the first time, at the same moment, and are switched as often
# as the interpreter can. Each document has one field of a wrong form: reading it must look at the
# field's type.
FIRST_READING = """
import contextlib, sys, threading

sys.setswitchinterval(1e-6)

from fleet_contract import codec
from fleet_contract.enrolment import EnrolmentAnswer
from fleet_contract.errors import Refused
from fleet_contract.manifest import Manifest
from fleet_contract.messages.report import Report
from fleet_contract.trust.directive import Assignment, Directive
from fleet_contract.trust.keyset import Keyset

KINDS = (Manifest, Report, Keyset, Directive, Assignment, EnrolmentAnswer)
THREADS = 6
start = threading.Barrier(THREADS)


def read():
    start.wait()
    for kind in KINDS:
        for name in kind.__struct_fields__:
            with contextlib.suppress(Refused):
                codec.decode_json(b'{"%s": 1.5}' % name.encode(), kind, limit_bytes=100)


threads = [threading.Thread(target=read) for _ in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_process_dies_when_threads_read_a_type_for_the_first_time() -> None:
    # Without the codec's care about every second of these processes died.
    lives = [
        subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", FIRST_READING],
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(LIVES)
    ]
    said = [life.communicate(timeout=120)[1].decode() for life in lives]
    assert [life.returncode for life in lives] == [0] * LIVES, "\n".join(said)
