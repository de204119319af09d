"""Guards from a --variant that means something else than was typed."""

import json
from pathlib import Path

import pytest

from fleet_server.command_line.output import CommandError
from fleet_server.command_line.variants import read_variants


def test_variants_become_a_field_and_files(tmp_path: Path) -> None:
    model = tmp_path / "small.tflite"
    model.write_bytes(b"x")
    field, files = read_variants(
        [
            "pi4:machine=aarch64,machine=armv7l,label.hardware=rpi4,memory_mib=64,recipe=float16",
            f"tpu:file={model}",
        ]
    )
    assert json.loads(field) == [
        {
            "name": "pi4",
            "machines": ["aarch64", "armv7l"],
            "labels": {"hardware": "rpi4"},
            "memory_bytes": 64 * 1024**2,
            "recipe": "float16",
        },
        {"name": "tpu", "machines": [], "labels": {}, "file": "variant-1"},
    ]
    assert files == {"variant-1": model}


@pytest.mark.parametrize(
    "text",
    ["", "pi4", ":machine=x", "a:", "a:machine", "a:colour=red", "a:file=none", "a:memory_mib=x"],
)
def test_what_is_not_understood_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(CommandError) as caught:
        read_variants([text])
    assert "machine" in str(caught.value.advice)
