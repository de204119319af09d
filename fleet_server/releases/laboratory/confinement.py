"""Takes away from this process every file but those it needs, by Linux's Landlock.

Decides which paths stay readable (the interpreter's and its libraries') and which writable (the
task's own folder). Where the kernel has no Landlock nothing happens here: the limits on memory,
time and open files hold anyhow.
"""

import ctypes
import os
import struct
import sys
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446
"""Numbers of the system calls, the same on all architectures."""
_NO_NEW_PRIVILEGES = 38
_BENEATH = 1
_EXECUTE, _WRITE, _READ_FILE, _READ_FOLDER = 1, 2, 4, 8
_ALL = (1 << 13) - 1
"""Every right of the first version of Landlock, making and removing included."""
_SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/proc", "/sys/devices", "/dev")


def confine(folder: Path) -> bool:
    """Leave this process the given folder, the one above and libraries to read; say if it worked.

    There is no way back, for this process and what it starts.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    handled = struct.pack("=Q", _ALL)
    rules = libc.syscall(_CREATE, handled, ctypes.c_size_t(len(handled)), 0)
    if rules < 0:
        return False
    try:
        source = str(Path(__file__).resolve().parents[3])
        readable = {*_SYSTEM, sys.prefix, sys.base_prefix, source, *filter(None, sys.path)}
        for path in sorted(readable):
            _allow(libc, rules, path, _READ_FILE | _READ_FOLDER | _EXECUTE)
        _allow(libc, rules, os.devnull, _READ_FILE | _WRITE)
        _allow(libc, rules, str(folder.parent), _READ_FILE | _READ_FOLDER)
        _allow(libc, rules, str(folder), _ALL & ~_EXECUTE)
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        return bool(libc.syscall(_RESTRICT, rules, 0) == 0)
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
    try:
        found = os.open(path, os.O_PATH)
    except OSError:
        return
    try:
        if not Path(path).is_dir():
            rights &= _EXECUTE | _WRITE | _READ_FILE
        rule = struct.pack("=Qi", rights, found)
        libc.syscall(_ADD, rules, _BENEATH, rule, 0)
    finally:
        os.close(found)
