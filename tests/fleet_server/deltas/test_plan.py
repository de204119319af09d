"""Guards from patches that nobody asks for, and from more of them than there is room for."""

from __future__ import annotations

from fleet_contract.manifest import FileRef, Requirements, Runtime, Variant
from fleet_server.deltas.plan import SOURCES, TARGETS, Release, plan


def variant(name: str, number: int, runtime: Runtime = Runtime.ONNXRUNTIME) -> Variant:
    return Variant(name, runtime, "int8", FileRef(f"{number:064x}", 1000), Requirements())


def release(number: int, *variants: Variant) -> Release:
    held = variants or (variant("int8", number),)
    return Release("digits", f"{number}.0.0", number, f"{number + 1000:064x}", held)


def pairs(*arguments) -> list[tuple[str, str]]:
    return [(delta.old_version, delta.new_version) for delta in plan(*arguments)]


def test_from_what_most_devices_run_first() -> None:
    newest, others = [release(9), release(8), release(7)], [release(3), release(2)]
    running = {release(2).digest: 500, release(3).digest: 20, release(8).digest: 1}
    found = pairs(newest, others, running)
    assert [old for old, new in found if new == "9.0.0"][:4] == ["2.0.0", "3.0.0", "8.0.0", "7.0.0"]
    assert {new for _, new in found} == {"9.0.0", "8.0.0"}


def test_what_is_kept_ready_in_production_has_patches_too() -> None:
    newest, kept = [release(9), release(8), release(7)], [release(9), release(4)]
    found = pairs(newest, [release(3)], {release(3).digest: 5}, kept)
    assert {new for _, new in found} == {"9.0.0", "8.0.0", "4.0.0"}
    assert ("3.0.0", "4.0.0") in found
    assert all(old != new for old, new in found)


def test_bounded_however_many_releases_run() -> None:
    newest = [release(number) for number in range(60, 50, -1)]
    others = [release(number) for number in range(50)]
    running = {item.digest: 1 for item in others}
    assert len(plan(newest, others, running)) == TARGETS * SOURCES


def test_a_single_release_needs_no_patch() -> None:
    assert plan([release(1)], [], {release(1).digest: 10}) == []


def test_each_variant_from_its_own_kind() -> None:
    arm, chip = variant("arm", 1), variant("chip", 2, Runtime.LITERT)
    new_arm, new_chip = variant("arm", 3), variant("chip", 4, Runtime.LITERT)
    found = plan([release(2, new_chip, new_arm), release(1, arm, chip)], [], {})
    to_newest = {(d.old, d.new) for d in found if d.new_version == "2.0.0"}
    assert to_newest == {(arm.artifact, new_arm.artifact), (chip.artifact, new_chip.artifact)}


def test_a_renamed_variant_is_found_by_its_runtime_and_another_runtime_never() -> None:
    old = release(1, variant("chip", 1, Runtime.LITERT), variant("int8", 2))
    found = plan([release(2, variant("int4", 3)), old], [], {})
    assert [d.old for d in found if d.new_version == "2.0.0"] == [old.variants[1].artifact]


def test_an_artifact_that_both_have_needs_no_patch() -> None:
    same = variant("int8", 7)
    assert plan([release(2, same), release(1, same)], [], {}) == []
