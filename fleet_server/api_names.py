"""Names and versions as the API takes them: checked, normalised, and described by their patterns.

The forms are the contract's; this is how FastAPI is told about them. A name that has not its form
becomes InvalidName before any endpoint sees it.
"""

from functools import partial
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from fleet_contract import names


def _described(pattern: str, example: str) -> WithJsonSchema:
    # Python's \Z is $ in the expressions that the API is described with.
    plain = pattern.removesuffix(r"\Z") + "$"
    return WithJsonSchema({"type": "string", "pattern": plain, "examples": [example]})


DeviceName = Annotated[
    str,
    AfterValidator(partial(names.check_identity, what="device")),
    _described(names.IDENTITY_PATTERN, "dev-0042"),
]
CohortName = Annotated[
    str,
    AfterValidator(partial(names.check_identity, what="cohort")),
    _described(names.IDENTITY_PATTERN, "lab"),
]
ModelName = Annotated[
    str, AfterValidator(names.check_model), _described(names.MODEL_PATTERN, "detector")
]
Version = Annotated[
    str,
    AfterValidator(names.check_version),
    _described(names.VERSION_PATTERN.replace("^(", "^v?("), "1.1.0"),
]
"""A leading ``v`` is taken off; ``latest`` is no version."""
