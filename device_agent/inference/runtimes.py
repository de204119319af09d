"""The runtimes of this device behind one: each variant names the one that executes it."""

from pathlib import Path

from device_agent.inference.litert import LiteRuntime
from device_agent.inference.session import ModelSession, OnnxRuntime, Runtime
from fleet_contract.manifest import Manifest, Variant
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
