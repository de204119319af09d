"""Guards from a self-test that a wrong model passes, beside an output of larger numbers."""

import numpy as np

from device_agent.inference.golden import Golden, difference
from fleet_contract.manifest import FileRef, GoldenVectors

FILE = FileRef("a" * 64, 1)
EXPECTED = {
    "score": np.array([[0.1], [0.9]], np.float32),
    "memory": np.array([[-40.0], [44.0]], np.float32),
}
WRONG = {**EXPECTED, "score": np.array([[0.9], [0.1]], np.float32)}


def test_wrong_score_beside_a_memory_of_large_numbers() -> None:
    golden = Golden({}, EXPECTED)
    loose = GoldenVectors(FILE, 0.0, 5.0)
    assert difference(golden, WRONG, loose, None) is None, "as an older server wrote it"
    exact = GoldenVectors(FILE, 0.0, 5.0, {"score": 0.05, "memory": 5.0})
    found = difference(golden, WRONG, exact, None)
    assert found is not None and "'score' is off by 0.8, allowed are 0.05" in found
    near = {"score": EXPECTED["score"] + 0.01, "memory": EXPECTED["memory"] + 4}
    assert difference(golden, near, exact, None) is None


def test_output_without_a_difference_of_its_own() -> None:
    partly = GoldenVectors(FILE, 0.0, 0.5, {"memory": 5.0})
    assert difference(Golden({}, EXPECTED), WRONG, partly, None) is not None
