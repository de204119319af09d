"""The words of a card: what fields, recipes and outputs are called where people read of them."""

TITLES = {
    "owner": "Owner",
    "licence": "Licence",
    "git_commit": "Commit",
    "dataset_hash": "Hash of the training data",
    "hyperparameters": "Hyperparameters",
    "metrics": "Metrics of the training",
    "training_ms": "Training took (ms)",
    "datasets": "Data set",
    "environment_lock": "SHA-256 of the environment's lock file",
    "imported_from": "Imported from",
    "tags": "Tags",
    "run_id": "Run",
    "sources": "Where data and code lie",
    "notes": "Notes",
}
ABOUT_USE = ("intended use", "use", "limits", "limitations", "not for", "risks", "ethics", "units")
"""Notes under these names say what a model is for; they have a chapter of their own."""
KINDS = {
    "logits": "scores of classes (logits): the largest wins",
    "probabilities": "probabilities of classes: the largest wins",
    "values": "numbers, with no winner among them",
}
RECIPES = {
    "float": "the float model as it was pushed",
    "static": "8-bit integers, their ranges measured on the calibration examples",
    "static-7bit": "8-bit integers with 7-bit weights, for processors that overflow otherwise",
    "static-all": "8-bit integers in all operators that can",
    "dynamic": "8-bit weights, ranges measured at each call",
    "dynamic-matmul": "8-bit weights of the matrix products alone, ranges measured at each call",
    "float16": "16-bit floats",
    "mixed": "8-bit integers, but for the operators that hurt",
    "mixed-layers": "8-bit integers, but for the layers that hurt",
    "weights-int8": "8-bit weights that are unpacked when a device loads it; it computes in float",
    "weights-float16": "16-bit weights that are unpacked when a device loads it",
    "given": "with quantised weights, as it was pushed",
}
AS_PUSHED = ("float", "given")
"""Nothing was made smaller here, so there is no other model that it could differ from."""
