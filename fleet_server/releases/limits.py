"""Bounds on what may be uploaded and staged; each says where it comes from.

A bound is checked before the bytes are parsed. What a device may be sent is bounded by the
contract's limits; how many bytes an upload may have in all is a setting.
"""

FIELD_BYTES = 64 * 1024
"""One text field of an upload; the metadata is the longest."""

MODEL_BYTES = 512 * 1024**2
"""A float model. Parsing and quantising take several times its size in memory."""

ARRAYS_BYTES = 1024**3
"""All arrays of one npz file, uncompressed, as its directory declares them."""

ARRAYS = 64
"""Arrays in one npz file: the contract's limit of inputs."""

ZIP_DIRECTORY_BYTES = 256 * 1024
"""The directory of an npz file; 64 entries with names of any sense take below 20 KiB."""

ROWS = 1 << 20
"""Rows of calibration, golden or baseline data; sketches hold at most four times as many."""

NPY_HEADER_BYTES = 4096
"""The header of one array in an npz file: numpy itself writes below 200 bytes."""

CALIBRATION_ROWS = 512
"""Rows used to calibrate; more change the ranges little and cost time linearly."""

PARITY_ROWS = 4096
"""Golden rows compared between the float and the quantised model."""

GOLDEN_ROWS = 32
"""Golden rows sent to devices: each runs them before it believes a release."""

GOLDEN_BYTES = 8 * 1024**2
"""The golden-vectors file that devices download: fewer rows where one row is large."""

GOLDEN_ROW_BYTES = 48 * 1024**2
"""One row with its outputs: devices read a golden file of up to 64 MiB."""

FEATURES_BYTES = 896 * 1024
"""Features in a manifest, and their sketches: an eighth of the contract's limit of a manifest is
left for everything else in it."""

SEQUENCE_STEPS = 200
"""Steps over which a model with states is followed: some seconds of sound in frames of 32 ms."""

BASELINE_ROWS = 100_000
"""Baseline rows sketched: quantiles at one in a thousand then still rest on a hundred rows."""

ROW_ELEMENTS = 1 << 24
"""Elements of one row of one tensor: 64 MiB of float32, above any model meant for a device."""

OPSET = 26
IR_VERSION = 13
"""The newest that the device runtime (onnxruntime 1.31) takes."""

OLDEST_OPSET = 13
"""Per-channel QuantizeLinear exists from this opset on."""

NESTING = 16
"""Subgraphs inside subgraphs."""

PARAMETERS = 200
PARAMETER_CHARACTERS = 500
"""Hyperparameters, and metrics, of the metadata: a large training script has some dozens."""

TAGS = 32
DATASETS = 20
"""Tags and data sets of a release: more are a catalogue, which belongs elsewhere."""

CLASSES = 4096
"""Classes of a classifier: the contract's limit of a vocabulary."""

FEATURES = 1024
"""Features of one side of a model: the contract's limit."""

EVALUATION_ROWS = 20_000
"""Labelled rows that the gates measure on: shares are then known to half a point and better, and
two runs of a model of 10 ms a row fit into a child's time."""

EXERCISE_ROWS = 256
EXERCISE_BYTES = 16 * 1024**2
EXERCISE_MS = 60_000
"""Baseline rows on which robustness and determinism are tried, each some ten times; fewer of a slow
model, so that all of it fits into about this time."""

SLICE_COLUMNS = 16
SLICES = 200
"""Columns of slices, and codes in all of them: more would leave each with few rows."""

OVERRIDES = 16
"""Gates that one push may override."""

LEAST_CALIBRATION_ROWS = 16
LEAST_GOLDEN_ROWS = 16
LEAST_BASELINE_ROWS = 50
LEAST_EVALUATION_ROWS = 50
"""Fewer rows say nothing about ranges, parity and distributions."""

PRODUCTION_BASELINE_ROWS = 1_000
"""What drift is measured against in production: the outermost quantiles of the baseline's edges,
one in a thousand, then rest on a row at all, and those at one in a hundred on ten."""

CHILD_MEMORY_BYTES = 4 * 1024**3
CHILD_CPU_S = 600
CHILD_WALL_S = 900.0
CHILD_FILE_BYTES = 2 * 1024**3
"""What a child may use for one task: memory beyond what it starts with, time, one file. Quantising
a model of 512 MiB takes the most; staging as a whole stays well below half an hour."""

LEAST_DIFFERENT_ROWS = 2
"""Golden rows that differ: one row many times shows nothing that varies. More are not asked for,
since a model of a few switches has few inputs in all."""

MEMORY_MARGIN = 1.25
MEMORY_STEP_BYTES = 16 * 1024**2
"""What a device must have for a model: the measured memory with this margin, in whole steps, since
another machine's allocator and a larger batch take more, and so that two runs say the same."""

SEARCH_BYTES = 256 * 1024
"""Smaller models get the default form without a search: neither size nor time is worth it."""

LAYERS = 48
LAYERS_MS = 240_000
"""Layers whose sensitivity is measured one by one, the largest first, and for how long."""

SEARCH_MS = 600_000
"""No new candidate is begun after this time; each ends within a child's own."""

TEMPORARY_FILES = "half-made"
"""Folder, within the upload's, of what the quantising tools write in between."""
