"""In which bucket a device lies, and where an arm must end to hold k devices.

A bucket is a 64-bit number drawn by hashing a rollout's salt with the device's name: device and
server find it alone and agree. Arms are inclusive ranges of buckets. Who is eligible for an arm
is decided by the server; this module only counts.
"""

import hashlib
import re
from collections.abc import Iterable

from fleet_contract.errors import Reason, Refused

LAST_BUCKET = (1 << 64) - 1
BUCKET_PATTERN = r"^[0-9a-f]{16}\Z"
SALT_PATTERN = r"^[0-9a-f]{32}\Z"
_BUCKET = re.compile(BUCKET_PATTERN)
_SALT = re.compile(SALT_PATTERN)


def bucket_of(salt: str, device: str) -> int:
    """Return the device's bucket under this salt.

    Args:
        salt: 16 random bytes in hexadecimal, drawn per rollout after membership froze.
        device: the device's name.

    Returns:
        The first 8 bytes of SHA-256(salt ‖ name), big-endian.

    Raises:
        Refused: ``malformed`` if the salt is not 32 lower-case hexadecimal digits.
    """
    if not _SALT.match(salt):
        raise Refused(Reason.MALFORMED, f"not a salt: {salt[:80]!r}")
    digest = hashlib.sha256(bytes.fromhex(salt) + device.encode()).digest()
    return int.from_bytes(digest[:8], "big")


def write_bucket(bucket: int) -> str:
    """Return the wire form: 16 hexadecimal digits."""
    return f"{bucket:016x}"


def read_bucket(text: str) -> int:
    """Return the bucket written as 16 lower-case hexadecimal digits.

    Raises:
        Refused: ``malformed`` otherwise.
    """
    if not _BUCKET.match(text):
        raise Refused(Reason.MALFORMED, f"not a bucket: {text[:40]!r}")
    return int(text, 16)


def arm_end(buckets: Iterable[int], devices: int) -> int | None:
    """Return the last bucket of an arm that starts at 0 and holds ``devices`` of these.

    The end is the k-th smallest bucket, so the share is exact instead of a coin toss, and an arm
    that grows keeps everyone who is in it.

    Returns:
        None for an arm that holds nobody.

    Raises:
        ValueError: when more devices are asked for than there are buckets.
    """
    if devices <= 0:
        return None
    ordered = sorted(buckets)
    if devices > len(ordered):
        raise ValueError(f"an arm of {devices} devices needs as many buckets, got {len(ordered)}")
    return ordered[devices - 1]
