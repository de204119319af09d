"""Brings a model and its examples from an MLflow registry into a folder, ready to be pushed.

Decides which file of a logged model is the model, and makes one file of an ONNX model whose weights
lie beside it, as MLflow writes them by default; a release has its weights inside.
"""

from pathlib import Path

import onnx
from onnx.external_data_helper import load_external_data_for_model

from fleet_server.errors import Invalid, NotFound, TooLarge
from fleet_server.mlflow.registry import Found, Registry
from fleet_server.releases import limits

ENDINGS = (".onnx", ".tflite")
EXAMPLES = ("calibration", "golden", "baseline", "evaluation")
# What MLflow writes beside a model and no model refers to.
_PAPERS = (".npz", ".yaml", ".yml", ".txt", ".json", ".md", "MLmodel")


def fetch_model(registry: Registry, found: Found, file: str, to: Path) -> Path:
    """Download the model's file, and return where it lies.

    Args:
        registry: where from.
        found: the model in it.
        file: its name in the folder of the model; empty for the only one that may be it.
        to: an empty folder.

    Raises:
        NotFound: if there is no such file.
        Invalid: if several may be it, or if its weights cannot be read.
        TooLarge: if it is larger than a model may be.
    """
    there = registry.files(found.folder)
    name = file or _only_model(there)
    if name not in there:
        raise NotFound("no_such_file", f"The model has no file {name[:100]!r}: {_list(there)}.")
    model = to / f"model{Path(name).suffix}"
    registry.download(found.folder, name, model, limits.MODEL_BYTES)
    beside = [item for item in there if not item.endswith((*ENDINGS, *_PAPERS))]
    if model.suffix == ".onnx" and beside:
        _gather(registry, found, model, beside)
    return model


def fetch_examples(registry: Registry, found: Found, to: Path) -> dict[str, Path]:
    """Download the examples that lie beside the model, or among the files of its run, and return
    where they lie, by role.
    """
    folders = [found.folder]
    if found.run is not None:
        folders.append(registry.root_of(found.run))
    here: dict[str, Path] = {}
    for folder in folders:
        there = registry.files(folder)
        for role in EXAMPLES:
            name = f"{role}.npz"
            if name in there and role not in here:
                registry.download(folder, name, to / name, limits.ARRAYS_BYTES)
                here[role] = to / name
    return here


def _only_model(there: dict[str, int]) -> str:
    models = [name for name in there if name.endswith(ENDINGS)]
    if len(models) != 1:
        raise Invalid(
            "which_model",
            f"{len(models)} files of it may be the model: {_list(there)}.",
            "Log it as ONNX (mlflow.onnx.log_model) or as a .tflite file, or name it by --file.",
        )
    return models[0]


def _gather(registry: Registry, found: Found, model: Path, beside: list[str]) -> None:
    """Put the weights that lie in files beside an ONNX model into it."""
    left_bytes = limits.MODEL_BYTES - model.stat().st_size
    for name in beside:
        registry.download(found.folder, name, model.parent / name, left_bytes)
        left_bytes -= (model.parent / name).stat().st_size
        if left_bytes < 0:
            raise TooLarge("too_large", "The model and its weights are larger than a model may be.")
    try:
        whole = onnx.load_model(model, load_external_data=False)
        # Looks only into this folder, which holds nothing but what was just downloaded.
        load_external_data_for_model(whole, str(model.parent))
        onnx.save_model(whole, model)
    except Exception as error:  # whatever a parser of foreign bytes may raise
        raise Invalid(
            "weights_elsewhere",
            f"The model's weights cannot be put together: {type(error).__name__}.",
            "Log it with save_as_external_data=False.",
        ) from error


def _list(there: dict[str, int]) -> str:
    return ", ".join(sorted(there)[:20])[:300] or "it has none"
