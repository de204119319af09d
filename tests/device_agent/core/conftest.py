"""Devices of the core's tests in the states from which most stories begin."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.device_agent.core.toy_device import A, Authority, B, Device, connected


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def device(authority: Authority) -> Device:
    """A booted and connected device with assignment and lifted stop, but without a directive."""
    return connected(authority)


@pytest.fixture(scope="session")
def device_on_a() -> Callable[[], tuple[Device, Authority]]:
    """A maker of fresh devices that run A, since hypothesis runs many examples in one test."""

    def make() -> tuple[Device, Authority]:
        authority = Authority()
        device = connected(authority)
        device.direct(authority.directive())
        device.wait(1000)
        return device, authority

    return make


@pytest.fixture
def on_a(device: Device, authority: Authority) -> Device:
    """A device that has soaked release A."""
    device.direct(authority.directive())
    device.wait(1000)
    assert device.running == A.digest
    device.performed.clear()
    return device


@pytest.fixture
def on_b(on_a: Device, authority: Authority) -> Device:
    """A device that went from A to B and keeps A warm."""
    on_a.direct(authority.to_arm(B))
    on_a.wait(1000)
    assert (on_a.running, on_a.standby) == (B.digest, A.digest)
    on_a.performed.clear()
    return on_a
