"""Guards from a reference of names that says otherwise than the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet_contract import names
from fleet_server import edge
from fleet_server.access import service as access
from fleet_server.devices import cohorts
from fleet_server.releases import metadata
from fleet_server.rollouts import plan
from fleet_server.settings import ENVIRONMENTS

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "names.md"
FEATURES = names.FEATURE_PATTERN
FORMS = {
    "fleet, cohort, device": names.IDENTITY_PATTERN,
    "model": names.MODEL_PATTERN,
    "version": names.VERSION_PATTERN,
    "feature": "^" + FEATURES[FEATURES.index("[a-z]") :],
    "class of a model": metadata.CLASS_PATTERN,
    "note, source, data set: its word": metadata.WORD_PATTERN,
    "tag of a release": metadata.TAG_PATTERN,
    "licence of a release": metadata.LICENCE_PATTERN,
    "rollout plan, stage": plan._STAGE_NAME.pattern,
    "label: key": cohorts._KEY.pattern,
    "label: value": cohorts._VALUE.pattern,
    "user of a token": access._USER.pattern,
    "change ticket": edge._TICKET.pattern,
    "digest": names.DIGEST_PATTERN,
}


@pytest.mark.parametrize("what", FORMS)
def test_form_that_the_reference_has_otherwise(what: str) -> None:
    rows = [line for line in REFERENCE.read_text().splitlines() if line.startswith(f"| {what} |")]
    assert len(rows) == 1
    # A bar would end the cell of the table.
    assert f"`{FORMS[what].replace('|', chr(92) + '|')}`" in rows[0]


def test_words_that_the_reference_leaves_out() -> None:
    text = REFERENCE.read_text()
    listed = text[text.index("**Reserved features**") :].split("They mean")[0]
    assert {word.strip("`,.: \n") for word in listed.split()[2:]} == set(names.RESERVED_FEATURES)
    assert all(f"`{name}`" in text for name in ENVIRONMENTS)
