"""Guards from locations and names that lead elsewhere than they say."""

from __future__ import annotations

import posixpath
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fleet_contract import names
from fleet_contract.errors import InvalidName
from fleet_server import api_names
from fleet_server.errors import Invalid, StartError
from fleet_server.locations import check_location
from fleet_server.releases.store import Store
from fleet_server.settings import Settings

ALLOWED = ("s3://models/", "/srv/models", "https://")
PIECES = st.sampled_from(
    [
        "..",
        ".",
        "/",
        "//",
        "~",
        "%2e",
        "%2E%2e",
        "%2f",
        "%5c",
        "\\",
        "a",
        "models",
        "\x00",
        " ",
        "@",
    ]
)


@pytest.mark.parametrize(
    "text", ["s3://models/a/b.onnx", "/srv/models/a", "https://example.org/a?b=c", "https://h/%20a"]
)
def test_location_that_is_meant(text: str) -> None:
    assert check_location(text, ALLOWED) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s3://models/",
        "s3://models-of-eve/a",
        "/srv/models-of-eve/a",
        "/srv/models/../../etc/passwd",
        "/srv/models/%2e%2e/etc",
        "/srv/models/%252e%252e/etc",
        "/srv/models/~root",
        "file:///etc/passwd",
        "/etc/passwd",
        "https://ann:secret@example.org/a",
        "https://example.org/a\nb",
        "HTTPS://example.org/a",
        "s3://models/" + "a" * 1_000,
    ],
)
def test_location_that_leads_elsewhere(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        check_location(text, ALLOWED)
    assert "secret" not in refused.value.detail + refused.value.advice


@given(st.sampled_from(ALLOWED), st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=40))
def test_allowed_beginning_that_is_left(beginning: str, rest: str) -> None:
    try:
        found = check_location(beginning + rest, ALLOWED)
    except Invalid:
        return
    plain = unquote(found)
    assert plain.startswith(beginning) and ".." not in plain and "~" not in plain
    if beginning.startswith("/"):
        assert posixpath.normpath(plain).startswith(beginning + "/")


@given(
    st.lists(PIECES | st.sampled_from(["artifacts", "manifests", "0" * 64]), max_size=8).map(
        "".join
    )
)
def test_store_that_is_left(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "left"
    store = Store(folder / "store")
    (folder / "secret").write_text("secret")
    with suppress(Invalid):
        assert store.find(path) is None


@given(st.text(max_size=70) | st.from_regex(names.MODEL_PATTERN))
def test_names_that_the_api_takes_and_the_contract_does_not(text: str) -> None:
    for kind, pattern in (
        (api_names.DeviceName, names.IDENTITY_PATTERN),
        (api_names.CohortName, names.IDENTITY_PATTERN),
        (api_names.ModelName, names.MODEL_PATTERN),
    ):
        adapter: TypeAdapter[str] = TypeAdapter(kind)
        fits = _fits(pattern, text)
        try:
            assert adapter.validate_python(text) == text
            assert fits
            assert not {"/", "\\", "~", "%", "\x00", "\n", "+", "#"} & set(text)
            assert ".." not in text
        except (InvalidName, ValidationError):
            assert not fits


def _fits(pattern: str, text: str) -> bool:
    return re.match(pattern, text) is not None


@given(st.from_regex(names.VERSION_PATTERN), st.sampled_from(["", "v"]))
def test_version_in_two_forms(text: str, letter: str) -> None:
    assert names.check_version(letter + text) == text
    assert TypeAdapter(api_names.Version).validate_python(letter + text) == text


@pytest.mark.parametrize(
    "text", ["latest", "Latest", "vlatest", "v", "vv1.0.0", "1.0", "-1", "1e3"]
)
def test_version_that_means_something_else_tomorrow(text: str) -> None:
    with pytest.raises(InvalidName):
        TypeAdapter(api_names.Version).validate_python(text)


@pytest.mark.parametrize("name", names.RESERVED_FEATURES)
def test_feature_with_a_name_that_means_something_already(name: str) -> None:
    assert not _fits(names.FEATURE_PATTERN, name)
    assert _fits(names.FEATURE_PATTERN, f"{name}_0")


def test_environment_that_is_none(tmp_path: Path) -> None:
    for text in ("", "prod", "../production", "production\n"):
        with pytest.raises(StartError):
            Settings(data_dir=tmp_path, environment=text)


@pytest.mark.parametrize(
    "text", ["h", "/", "..", "s3://../", "~/models", "/srv/%2e%2e/", "models/", "S3://a", "://a"]
)
def test_beginning_that_allows_more_than_it_says(tmp_path: Path, text: str) -> None:
    with pytest.raises(StartError) as caught:
        Settings(data_dir=tmp_path, allowed_locations=f"https:// {text}")
    assert "allowed_locations" in caught.value.detail
