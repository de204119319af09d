"""What a process may use in which a model is tried: memory, time, files, and whose words it hears.

Decides the limits that a process sets to itself, and the environment of one that is started for
this. Which models are tried, and what comes of it, is decided by whoever starts it.
"""

import os
import resource
from pathlib import Path

MEMORY_BYTES = 1024**3
"""What a model may allocate while it is tried, unless it is known to need more."""
_OPEN_FILES = 64


def confine(memory_bytes: int, timeout_s: float) -> None:
    """Take from this process what a model does not need.

    Args:
        memory_bytes: what it may allocate beyond what it holds now.
        timeout_s: how much of the processor's time it may take.
    """
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    own = pages * resource.getpagesize()
    for what, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_AS, own + memory_bytes),
    ):
        resource.setrlimit(what, (value, value))
    # Ended by SIGXCPU, which tells it from a crash; the hard limit is for who ignores that.
    cpu_s = int(timeout_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 2))


def environment() -> dict[str, str]:
    """Return a helper process' own: where to find this package, and one thread for each library."""
    source = str(Path(__file__).resolve().parents[2])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
