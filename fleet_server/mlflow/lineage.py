"""What MLflow knows of a model, in the words of a release's metadata.

Decides what is taken over: run, parameters, last metrics, git commit, duration and data sets. What
does not fit the metadata's bounds is left out or cut, and named, so that nobody takes it for all.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fleet_contract import codec
from fleet_contract.errors import Refused
from fleet_server.locations import LOCATION_CHARACTERS
from fleet_server.mlflow.registry import ANSWER_BYTES, DatasetInput, Found, Pair, Run
from fleet_server.releases import limits, metadata

COMMIT_TAG = "mlflow.source.git.commit"
CONTEXT_TAG = "mlflow.data.context"
_OWN_TAGS = "mlflow."
_LICENCE_TAGS = ("licence", "license")


@dataclass(frozen=True, slots=True)
class Lineage:
    """Metadata as a push takes it, and sentences about what was left out of it."""

    metadata: dict[str, Any]
    left_out: list[str]


def lineage(found: Found) -> Lineage:
    """Return what is known of a model of the registry."""
    said: dict[str, Any] = {"imported_from": found.origin}
    left_out: list[str] = []
    if not re.match(metadata.ORIGIN_PATTERN, found.origin):
        del said["imported_from"]
        left_out.append("the name in the registry has characters that are not kept")
    tags = list(found.version.tags) if found.version is not None else []
    if found.run is not None:
        said |= _of_run(found.run, left_out)
        tags += found.run.data.tags
    else:
        left_out.append("the run: the registry does not know which one made this model")
    said |= _of_tags(tags)
    return Lineage({name: value for name, value in said.items() if value}, left_out)


def _of_run(run: Run, left_out: list[str]) -> dict[str, Any]:
    names = {pair.key for pair in run.data.params}
    parameters = {
        pair.key: pair.value[: limits.PARAMETER_CHARACTERS]
        for pair in run.data.params
        if re.match(metadata.NAME_PATTERN, pair.key)
    }
    cut = sum(len(pair.value) > limits.PARAMETER_CHARACTERS for pair in run.data.params)
    if cut:
        left_out.append(f"the ends of {cut} parameters: {limits.PARAMETER_CHARACTERS} characters")
    metrics = {
        item.key: float(item.value)
        for item in run.data.metrics
        if re.match(metadata.NAME_PATTERN, item.key)
        and isinstance(item.value, float)
        and math.isfinite(item.value)
    }
    for what, kept, all_of in (
        ("parameters", parameters, len(names)),
        ("metrics", metrics, len(run.data.metrics)),
    ):
        lost = all_of - min(len(kept), limits.PARAMETERS)
        if lost:
            left_out.append(f"{lost} of the {what}: no numbers, odd names, or more than are kept")
    took_ms = run.info.end_time - run.info.start_time
    timed = run.info.start_time > 0 and 0 <= took_ms <= metadata.LONGEST_TRAINING_MS
    return {
        "run_id": run.info.run_id if re.match(metadata.RUN_PATTERN, run.info.run_id) else None,
        "hyperparameters": _first(parameters),
        "metrics": _first(metrics),
        "training_ms": took_ms if timed else None,
        **_of_datasets(run.inputs.dataset_inputs, left_out),
    }


def _of_datasets(inputs: Sequence[DatasetInput], left_out: list[str]) -> dict[str, Any]:
    """The hash of what it was trained on, and where each data set lies, if that is a URI."""
    training = [item for item in inputs if _tag(item.tags, CONTEXT_TAG) in ("training", "train")]
    chosen = (training or list(inputs))[:1]
    hashes = [f"{item.dataset.name}:{item.dataset.digest}" for item in chosen]
    if chosen and not re.match(metadata.HASH_PATTERN, hashes[0]):
        hashes = [chosen[0].dataset.digest]
    where: dict[str, str] = {}
    for item in inputs:
        uri = _uri(item.dataset.source)
        fits = "://" in uri and len(uri) <= LOCATION_CHARACTERS
        if fits and re.match(metadata.WORD_PATTERN, item.dataset.name):
            where[item.dataset.name] = uri
        else:
            left_out.append(f"where the data set {item.dataset.name[:60]!r} lies: it has no URI")
    kept = [item for item in hashes if re.match(metadata.HASH_PATTERN, item)]
    return {
        "dataset_hash": kept[0] if kept else None,
        "datasets": dict(list(where.items())[: limits.DATASETS]),
    }


def _of_tags(tags: Sequence[Pair]) -> dict[str, Any]:
    """The git commit, licence and owner, and the team's own tags as KEY=VALUE."""
    commit = _tag(tags, COMMIT_TAG).lower()
    licence = next((value for name in _LICENCE_TAGS if (value := _tag(tags, name))), "")
    owner = _tag(tags, "owner")
    own = [f"{pair.key}={pair.value}" for pair in tags if not pair.key.startswith(_OWN_TAGS)]
    special = {f"{name}={_tag(tags, name)}" for name in (*_LICENCE_TAGS, "owner")}
    fitting = [tag for tag in own if tag not in special and re.match(metadata.TAG_PATTERN, tag)]
    return {
        "git_commit": commit if re.match(metadata.COMMIT_PATTERN, commit) else None,
        "licence": licence if re.match(metadata.LICENCE_PATTERN, licence) else None,
        "owner": owner if re.match(metadata.CLASS_PATTERN, owner) else None,
        "tags": list(dict.fromkeys(fitting))[: limits.TAGS],
    }


def _tag(tags: Sequence[Pair], key: str) -> str:
    return next((pair.value for pair in tags if pair.key == key), "")


def _uri(source: str) -> str:
    """The location in MLflow's description of a source, which is JSON in a text."""
    try:
        said = codec.decode_json(source.encode(), dict[str, Any], limit_bytes=ANSWER_BYTES)
    except Refused:
        return ""
    found = said.get("uri") or said.get("url") or said.get("path") or ""
    return found if isinstance(found, str) else ""


def _first(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in sorted(found)[: limits.PARAMETERS]}
