"""The forms of names and versions on the wire.

Decides which strings may name a fleet, a cohort, a device, a model, a feature or a version. No
path is ever built from a name that came over the wire; these forms are still free of ``/``,
``..``, MQTT wildcards and control characters, so that a slip elsewhere does no harm.
"""

import re
from typing import Annotated

from msgspec import Meta

from fleet_contract.errors import InvalidName

# ``\Z`` instead of ``$``, which also matches in front of a closing line feed, and ``[0-9]`` instead
# of ``\d``, which also matches the digits of other scripts.
IDENTITY_PATTERN = r"^[a-z0-9][a-z0-9-]{0,61}[a-z0-9]\Z"
MODEL_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}[a-z0-9]\Z"
# A feature is a word beside others in reports and in evidence; these mean something there already.
RESERVED_FEATURES = (
    *("all", "any", "arm", "cohort", "device", "fleet", "inf", "model", "nan", "none", "null"),
    *("other", "release", "rollout", "timestamp", "version"),
)
FEATURE_PATTERN = rf"^(?!(?:{'|'.join(RESERVED_FEATURES)})\Z)[a-z][a-z0-9_]{{0,127}}\Z"
_NUMBER = "(0|[1-9][0-9]{0,8})"
VERSION_PATTERN = rf"^({_NUMBER}\.{_NUMBER}\.{_NUMBER}(-[a-zA-Z0-9.]{{1,64}})?|[1-9][0-9]{{0,8}})\Z"
DIGEST_PATTERN = r"^[0-9a-f]{64}\Z"

Identity = Annotated[str, Meta(pattern=IDENTITY_PATTERN)]
"""Name of a fleet, a cohort or a device: a DNS label of 2 to 63 characters."""
ModelName = Annotated[str, Meta(pattern=MODEL_PATTERN)]
FeatureName = Annotated[str, Meta(pattern=FEATURE_PATTERN)]
Version = Annotated[str, Meta(pattern=VERSION_PATTERN)]
"""Semantic version, or an integer revision from 1 on; without a leading ``v``."""
Digest = Annotated[str, Meta(pattern=DIGEST_PATTERN)]
"""SHA-256 in 64 lower-case hexadecimal digits."""

_IDENTITY = re.compile(IDENTITY_PATTERN)
_MODEL = re.compile(MODEL_PATTERN)
_VERSION = re.compile(VERSION_PATTERN)


def check_identity(name: str, what: str) -> str:
    """Return ``name`` if it may name a fleet, cohort or device; ``what`` goes into the error.

    Raises:
        InvalidName: otherwise.
    """
    if not _IDENTITY.match(name):
        raise InvalidName(
            f"{what} {name[:80]!r} is not allowed: use 2 to 63 of a-z, 0-9 and -, "
            "starting and ending with a letter or digit"
        )
    return name


def check_model(name: str) -> str:
    """Return ``name`` if it may name a model.

    Raises:
        InvalidName: otherwise.
    """
    if not _MODEL.match(name):
        raise InvalidName(
            f"model {name[:80]!r} is not allowed: use 2 to 64 of a-z, 0-9, _ and -, "
            "starting and ending with a letter or digit"
        )
    return name


def check_version(text: str) -> str:
    """Return the version in its normal form, without a leading ``v``.

    Raises:
        InvalidName: if it is neither a semantic version nor an integer revision; ``latest`` never
            is one.
    """
    normal = text.removeprefix("v")
    if not _VERSION.match(normal):
        raise InvalidName(
            f"version {text[:80]!r} is not allowed: write MAJOR.MINOR.PATCH, for example 1.4.0, "
            "or a revision, for example 17"
        )
    return normal
