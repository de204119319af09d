"""Reads the text fields of an upload: what the pusher asks for and says of a release.

Decides which fields there are, and what somebody is told whose field is not of its form: the field,
and the form in words. The forms themselves are those of :class:`Options` and its parts.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from fleet_contract import codec, names
from fleet_server.errors import Invalid
from fleet_server.releases.gates import table
from fleet_server.releases.interface import Interface
from fleet_server.releases.metadata import Metadata
from fleet_server.releases.states import Recipe
from fleet_server.releases.uploads import VARIANT_FILES, Options, WantedVariant

NUMBERS: Mapping[str, type[int] | type[float]] = {
    **dict.fromkeys(("agreement", "metric_margin", "slice_margin"), float),
    "size_budget_bytes": int,
}
OBJECTS: Mapping[str, Any] = {
    "metadata": Metadata,
    "interface": Interface,
    "overrides": dict[str, str],
    "bench": dict[str, str],
    "variants": list[WantedVariant],
}
"""Fields that hold JSON, and of what."""
FIELDS = (
    *("version", "output_kind", "metric", "approve_schema", "numpy"),
    *(*NUMBERS, *OBJECTS),
)

_FORMS = {
    "output_kind": "logits, probabilities or values",
    "metric": "accuracy, auc, f1, rmse or mae",
    "approve_schema": "a reason in one line, of up to 500 characters",
    "numpy": "a version of two numbers, such as 2.0",
    "agreement": "a share from 0.5 to 1",
    "metric_margin": "a number, such as 0.01",
    "slice_margin": "a number from 0 on, such as 0.05",
    "size_budget_bytes": "a whole number of bytes",
    "metadata": 'JSON, such as {"licence": "MIT", "notes": {"by": "Ann"}}',
    "interface": 'JSON, such as {"shapes": {"state": [2, "n", 128]}}',
    "overrides": 'a gate and a reason in one line, of 3 to 500 characters: {"metric": "why"}',
    "bench": 'JSON, labels of devices: {"hardware": "pi4"}',
    "variants": 'JSON, such as [{"name": "pi4", "machines": ["aarch64"]}]',
    "recipe": "one of static, static-7bit, static-all, dynamic, dynamic-matmul, float16, "
    "weights-int8, weights-float16 and float",
    "machines": "names as uname -m prints them, such as aarch64",
    "name": "up to 31 of a-z, 0-9, ., _ and -",
    "classes": "names of up to 80 characters each, 4,096 at most",
    "notes": "up to 50 texts by name, such as intended use or limits",
    "hyperparameters": "up to 200 texts or numbers by name",
    "metrics": "up to 200 numbers by name",
    "sources": "up to 20 locations by name",
    "datasets": "up to 20 locations by name",
    "dataset_hash": "up to 200 letters, digits and ._:+/=-, such as md5:22a1…",
    "git_commit": "7 to 64 hexadecimal digits, as git rev-parse HEAD prints them",
    "environment_lock": "a SHA-256: 64 lower-case hexadecimal digits, as sha256sum prints them",
    "training_ms": "a whole number of milliseconds",
    "tags": "up to 32 words of letters, digits and ._:=/-",
    "licence": "an SPDX identifier or expression, such as Apache-2.0 (https://spdx.org/licenses/)",
    "owner": "a name of up to 80 characters",
}
"""What is right, in words; of parts of the JSON fields, too."""
_PLACE = re.compile(r" - at (?:`key` in )?`\$(?P<way>.*)`\Z")
_NAME = re.compile(r"\.([a-z0-9_]+)")


def read_options(fields: Mapping[str, bytes | bytearray], model: str) -> Options:
    """Return what the fields of an upload of this model say.

    Raises:
        Invalid: if a field is missing or not of its form, or a gate cannot be overridden.
        InvalidName: for a version that is not allowed.
    """
    texts = {name: read_text(name, value) for name, value in fields.items()}
    if "version" not in texts:
        raise Invalid(
            "missing_version", "The field 'version' is missing.", "Send for example 1.0.0."
        )
    found: dict[str, Any] = {
        **texts,
        "model": model,
        "version": names.check_version(texts["version"]),
    }
    name = ""
    try:
        for name, text in texts.items():
            if (kind := OBJECTS.get(name)) is not None:
                found[name] = msgspec.json.decode(text, type=codec.prepared(kind))
            elif (number := NUMBERS.get(name)) is not None:
                found[name] = number(text)
        name = ""
        options = msgspec.convert(found, codec.prepared(Options))
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise _wrong(name, error) from error
    for gate in options.overrides:
        if not table.may_override(gate):
            raise Invalid(
                "not_overridable",
                f"The gate {gate!r} cannot be overridden.",
                "These can: "
                + ", ".join([name for name in table.GATES if table.may_override(name)])
                + f", and {table.CUSTOM}NAME.",
            )
    return options


def _wrong(field: str, error: Exception) -> Invalid:
    """Say what the form is of the innermost thing that is known by name."""
    text = str(error)
    place = _PLACE.search(text)
    way = [field, *_NAME.findall(place["way"] if place else "")]
    known = next((name for name in reversed(way) if name in _FORMS), "")
    inside = f" of {field}" if field and known != field else ""
    why = "" if place and known != field else f": {text[:200]}"
    return Invalid(
        "bad_field",
        f"The field {known!r}{inside} is not of its form{why}.",
        f"It is {_FORMS[known]}." if known else "See docs/guides/push-a-model.md.",
    )


def check_variants(options: Options, sizes: Mapping[str, int]) -> None:
    """Judge whether each variant has its file, and each file and name its one variant.

    Args:
        options: of the upload.
        sizes: field → bytes of the files that came.

    Raises:
        Invalid: if not.
    """
    named = [item.file for item in options.variants if item.file]
    sent = [name for name in sizes if name in VARIANT_FILES]
    if sorted(named) != sorted(sent) or not all(sizes[name] for name in sent):
        raise Invalid(
            "variant_files",
            f"Variants name the files {', '.join(named) or 'none'}; there are "
            f"{', '.join(sent) or 'none'}.",
            f"Send each variant's own model as one of the fields {', '.join(VARIANT_FILES)}.",
        )
    made = [item.recipe for item in options.variants]
    if {Recipe.MIXED, Recipe.MIXED_LAYERS, Recipe.GIVEN}.intersection(made):
        raise Invalid(
            "variant_recipe",
            "A variant cannot be asked for by the recipes mixed, mixed-layers and given.",
            "Leave the recipe out: mixed forms are found by the search.",
        )
    called = [item.name for item in options.variants]
    taken = {"int8", "float16", "float32"}.intersection(called)
    if len(set(called)) < len(called) or taken:
        raise Invalid(
            "variant_names",
            "Two variants have the same name, or one has that of a precision.",
            "The main artifact is named by its precision; name the others after their devices.",
        )


def read_text(name: str, value: bytes | bytearray) -> str:
    """Return the text of a field. Raises Invalid."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Invalid("bad_field", f"The field {name!r} is not UTF-8 text.") from error
