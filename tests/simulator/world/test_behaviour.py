"""Drawn windows must pass for real ones: the contract's own checks accept them."""

import numpy as np
import pytest

from fleet_contract.sketches import features, latency
from simulator.world.behaviour import SCHEMA, Behaviour, Place, Profile, baseline_of

PROFILE = Profile((1.0,) * 10, confidence=0.8, error_rate=0.1, latency_us=3_000)


def on_device(seed: int) -> Behaviour:
    numbers = np.random.default_rng(seed)
    return Behaviour(PROFILE, Place(numbers), numbers)


@pytest.mark.parametrize("calls", [1, 7, 60, 5_000])
def test_drawn_window_breaks_the_contract(calls: int) -> None:
    behaviour = on_device(3)
    errors, outputs, latencies = behaviour.draw(calls)
    assert 0 <= errors <= calls
    features.check(outputs, SCHEMA.outputs)
    latency.check(latencies)
    assert latencies.count == outputs.categorical[0].rows == calls - errors


def test_baseline_breaks_the_contract() -> None:
    features.check(baseline_of(PROFILE), SCHEMA.outputs)


def test_all_devices_are_alike() -> None:
    """Without differences between devices, no test would have to respect them."""
    shares = []
    for seed in range(30):
        _, outputs, _ = on_device(seed).draw(20_000)
        counts = np.array(outputs.categorical[0].counts[:10])
        shares.append(counts / counts.sum())
    spread = np.std(shares, axis=0).mean()
    binomial = np.sqrt(0.1 * 0.9 / 18_000)
    assert spread > 5 * binomial


def test_latency_is_not_the_profiles() -> None:
    medians = []
    for seed in range(20):
        _, _, latencies = on_device(seed).draw(2_000)
        medians.append(latency.quantile_us(latencies, 0.5) or 0.0)
    assert 2_000 < float(np.median(medians)) < 4_500
