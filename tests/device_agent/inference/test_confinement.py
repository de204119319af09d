"""A model that takes too long is told from one that crashes, also where nobody looked in time."""

import signal
import subprocess
import sys

SPIN = """
from device_agent.inference.confinement import confine
confine(1 << 30, 0.5)
while True:
    pass
"""


def test_endless_work_ends_by_the_signal_that_says_so() -> None:
    ended = subprocess.run([sys.executable, "-c", SPIN], check=False, timeout=120)
    assert ended.returncode == -signal.SIGXCPU
