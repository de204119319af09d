"""Makes the card of a release that is being sealed: everything known of it, in one place.

Decides where each part of a card comes from. A card of the release before that is gone or cannot be
read costs the comparison with it, not the release.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from fleet_contract.errors import Refused
from fleet_contract.manifest import Baseline, Manifest
from fleet_server.releases.card import bundle, gather
from fleet_server.releases.card.content import Card, Previous, Proofs
from fleet_server.releases.examples import Rows
from fleet_server.releases.parity import Parity
from fleet_server.releases.states import Candidate, Recipe, Step
from fleet_server.releases.store import Store
from fleet_server.releases.uploads import Upload


@dataclass(frozen=True, slots=True)
class Known:
    """What staging knows when a release is sealed.

    ``reference`` and ``shipped`` are the outputs of the float and of the shipped model on all
    golden rows; ``previous_card`` is a digest.
    """

    manifest: Manifest
    upload: Upload
    steps: Sequence[Step]
    recipe: Recipe
    reason: str
    parity: Parity
    candidates: list[Candidate]
    reference: Rows
    shipped: Rows
    baseline: Baseline
    previous: Manifest | None
    previous_card: str | None
    proofs: Proofs


def make(known: Known, store: Store) -> bytes:
    """Return the file of the card."""
    options, manifest = known.upload.options, known.manifest
    sides = (
        ("output", manifest.features.outputs, known.baseline.outputs),
        ("input", manifest.features.inputs, known.baseline.inputs),
    )
    card = Card(
        model=manifest.model,
        version=manifest.version,
        created_ms=manifest.created_ms,
        output_kind=options.output_kind.value,
        source_bytes=known.upload.source_bytes,
        recipe=known.recipe.value,
        reason=known.reason,
        inputs=list(manifest.inputs),
        outputs=list(manifest.outputs),
        metadata=msgspec.to_builtins(options.metadata),
        candidates=known.candidates,
        comparison=gather.compare(
            known.reference,
            known.shipped,
            known.parity,
            options.output_kind,
            options.metadata.classes,
            states=manifest.states.values(),
        ),
        gates=gather.gates(known.steps),
        steps=gather.lines(known.steps),
        features=[line for side in sides for line in gather.features(*side)],
        needs=gather.needs(manifest),
        previous=_previous(known, store),
        proofs=known.proofs,
        states=dict(manifest.states),
    )
    return bundle.render(card)


def _previous(known: Known, store: Store) -> Previous | None:
    if known.previous is None:
        return None
    version, needs = known.previous.version, gather.needs(known.previous)
    digest, model = known.previous_card, known.previous.model
    data = digest and store.read_card(model, digest, limit_bytes=bundle.BUNDLE_BYTES)
    if not data:
        return Previous(version, needs)
    try:
        card = bundle.read(data).card
    except Refused:
        return Previous(version, needs)
    return Previous(version, needs, card.comparison.agreement, card.metadata)
