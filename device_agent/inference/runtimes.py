"""The runtimes of this device behind one: each variant names the one that executes it."""

from pathlib import Path

from device_agent.inference.litert import LiteRtSession, LiteRuntime
from device_agent.inference.session import ModelSession, OnnxRuntime, OnnxSession, Runtime
from fleet_contract.manifest import Manifest, TensorSpec, Variant
from fleet_contract.manifest import Runtime as RuntimeName


class Runtimes:
    """onnxruntime and LiteRT; what is not installed fails as a broken model when it is asked for,
    which no release does: the device's capabilities do not list it.
    """

    def __init__(self, threads: int = 1) -> None:
        self._known: dict[RuntimeName, Runtime] = {
            RuntimeName.ONNXRUNTIME: OnnxRuntime(threads),
            RuntimeName.LITERT: LiteRuntime(threads),
        }

    def load(self, path: Path, manifest: Manifest, variant: Variant) -> ModelSession:
        """Return a session of the artifact at ``path``. Raises StepFailed."""
        return self._known[variant.runtime].load(path, manifest, variant)


def session_of(
    runtime: RuntimeName, model: bytes, inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> ModelSession:
    """Return a session on one thread of a model that is in no manifest. Raises StepFailed."""
    kind = LiteRtSession if runtime is RuntimeName.LITERT else OnnxSession
    return kind(model, inputs=inputs, outputs=outputs)
