"""Patches between releases against full zstd at level 19 and bsdiff4: bytes, times, memory.

A MobileNetV2 with random weights is fine-tuned by noise, quantised by the server's own tools, and
recalibrated. EDGEFLEET_BENCH_PAIRS=old.onnx:new.onnx,... names pairs of files to measure, too.
Patches are made as the server makes them, by its child process: the time has the start of Python,
the hashes and the trial decoding in it. Decoding is a process of its own; its memory is what it
peaks at above what it has when everything is imported.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bsdiff4
import numpy as np
import onnx
from onnx import numpy_helper

from fleet_contract.deltas.decoder import Decoder
from fleet_contract.deltas.zstandard import zstd
from fleet_server.deltas import child
from fleet_server.releases.quantisation import build
from fleet_server.releases.states import Recipe
from tests.benchmarks.bench_models import mobilenet
from tests.benchmarks.measurement import Measurement

PROJECT = Path(__file__).resolve().parents[2]
SIDE = 32
ROUNDS = 5
MEMORY_BYTES = 2 * 1024 * 1024
"""Above rest. The goal allows one tensor of old and new besides; nothing of that is used."""
FASTER = 1 / 20


def run() -> list[Measurement]:
    found: list[Measurement] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, old, new in _pairs(Path(folder)):
            found += _measure(name, old, new, Path(folder) / "patch")
    return found


def _pairs(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    first = onnx.load_from_string(mobilenet(1, SIDE))
    floats = {
        "first": first,
        "tuned": _tuned(first, 0.001),
        "tuned_more": _tuned(first, 0.03),
        "head": _tuned(first, 0.01, last=True),
    }
    files = {
        name: _write(folder / name, model.SerializeToString()) for name, model in floats.items()
    }
    yield "fp32, fine-tune", files["first"], files["tuned"]
    yield "fp32, head only", files["first"], files["head"]
    small = {
        name: _int8(folder, name, floats[name], 1) for name in ("first", "tuned", "tuned_more")
    }
    yield "int8, light fine-tune", small["first"], small["tuned"]
    yield "int8, heavier fine-tune", small["first"], small["tuned_more"]
    yield "int8, recalibrated only", small["first"], _int8(folder, "again", first, 2)
    for pair in filter(None, os.environ.get("EDGEFLEET_BENCH_PAIRS", "").split(",")):
        old, new = map(Path, pair.split(":"))
        yield f"{old.name} to {new.name}", old, new


def _tuned(model: onnx.ModelProto, share: float, *, last: bool = False) -> onnx.ModelProto:
    """Return the model after noise of so many standard deviations on its weights."""
    rng = np.random.default_rng(2)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    weights = [tensor for tensor in made.graph.initializer if len(tensor.dims) > 1]
    for tensor in weights[-1:] if last else weights:
        values = numpy_helper.to_array(tensor)
        noise = rng.normal(0, share * float(values.std()), values.shape).astype(values.dtype)
        tensor.CopyFrom(numpy_helper.from_array(values + noise, tensor.name))
    return made


def _int8(folder: Path, name: str, model: onnx.ModelProto, seed: int) -> Path:
    rows = np.random.default_rng(seed).random((8, 3, SIDE, SIDE)).astype(np.float32)
    work = folder / f"work-{name}"
    work.mkdir()
    source = _write(work / "float.onnx", model.SerializeToString())
    made = build(source, Recipe.STATIC_7BIT, {model.graph.input[0].name: rows}, work)
    return _write(folder / f"{name}.int8", made)


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _measure(name: str, old: Path, new: Path, patch: Path) -> list[Measurement]:
    was, fresh = old.read_bytes(), new.read_bytes()
    reference = patch.with_name("bsdiff4")
    made_s: list[float] = []
    references_s: list[float] = []
    times: dict[str, list[float]] = {"ours": [], "bsdiff4": []}
    command = [sys.executable, "-m", child.__name__, str(old), str(new), str(patch)]
    encode_rounds = 1 if len(fresh) > 4_000_000 else 3
    for _ in range(encode_rounds):
        made_s.append(_timed(lambda: subprocess.run(command, check=True, cwd=PROJECT)))
        references_s.append(_timed(lambda: reference.write_bytes(bsdiff4.diff(was, fresh))))
    peaks = {}
    for _ in range(ROUNDS):
        for kind, file in (("ours", patch), ("bsdiff4", reference)):
            took_ms, peaks[kind] = _decode(kind, old, file)
            times[kind].append(took_ms)
    full_bytes = len(zstd.compress(fresh, level=19))
    sizes = {"zstd-19": full_bytes, "bsdiff4": reference.stat().st_size}
    best = min(sizes, key=sizes.__getitem__)
    title = f"deltas, {name} ({len(fresh) / 1e6:.1f} MB)"
    print(f"  {title}: ours {patch.stat().st_size}, {sizes}", flush=True)
    return [
        Measurement(
            f"{title}: patch",
            100 * patch.stat().st_size / len(fresh),
            "%",
            best,
            100 * sizes[best] / len(fresh),
            largest_ratio=1.0,
        ),
        Measurement(
            f"{title}: making it",
            1000 * statistics.median(made_s),
            "ms",
            "bsdiff4",
            1000 * statistics.median(references_s),
            # A small file's patch takes as long as Python's start.
            largest_ratio=FASTER if encode_rounds == 1 and "fine-tune" in name else None,
        ),
        Measurement(
            f"{title}: applying it",
            statistics.median(times["ours"]),
            "ms",
            "bsdiff4",
            statistics.median(times["bsdiff4"]),
            largest_ratio=None,
        ),
        Measurement(
            f"{title}: memory to apply it",
            peaks["ours"],
            "bytes",
            "bsdiff4",
            peaks["bsdiff4"],
            largest_value=MEMORY_BYTES,
        ),
    ]


def _timed(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


def _decode(kind: str, old: Path, patch: Path) -> tuple[float, int]:
    command = [sys.executable, "-m", __name__, kind, str(old), str(patch)]
    done = subprocess.run(command, check=True, capture_output=True, cwd=PROJECT)
    took_ms, peak = json.loads(done.stdout)
    return took_ms, peak


def _decode_here(kind: str, old_path: str, patch_path: str) -> tuple[float, int]:
    """Apply a patch, and return how long it took and how far memory rose."""
    rest = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak until now
    began_s = time.perf_counter()
    if kind == "bsdiff4":
        bsdiff4.patch(Path(old_path).read_bytes(), Path(patch_path).read_bytes())
    else:
        with open(old_path, "rb", buffering=0) as old, open(patch_path, "rb", buffering=0) as patch:
            number = old.fileno()
            with open(os.devnull, "wb") as new:
                for piece in Decoder(patch.read).pieces(
                    lambda at, size: os.pread(number, size, at)
                ):
                    new.write(piece)
    took_ms = 1000 * (time.perf_counter() - began_s)
    return took_ms, _memory("VmHWM") - rest


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"this system does not tell {field}")


if __name__ == "__main__":
    print(json.dumps(_decode_here(*sys.argv[1:])))
