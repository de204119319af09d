"""A release's model card over HTTP: as JSON, as Markdown, and its pictures one by one.

Decides the forms only; a card is what was stored at sealing. What pushers said may be in it, so
that a browser is told to run nothing.
"""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, ConfigDict

from fleet_contract.errors import Refused
from fleet_server.access.authentication import Operator
from fleet_server.api_names import ModelName, Version
from fleet_server.errors import NotFound
from fleet_server.releases import service
from fleet_server.releases.card import bundle
from fleet_server.releases.card.bundle import Bundle
from fleet_server.releases.endpoints import UsedStaging
from fleet_server.releases.records import ReleaseRecord
from fleet_server.releases.store import Store
from fleet_server.request_context import UsedDatabase

router = APIRouter(prefix="/v1/models", tags=["models"])

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}
_EXAMPLE: dict[str, Any] = {
    "digest": "32057ad71a80a9d22253560bf471f887b75ba1f9027d2c0fd5dad9ef5808acba",
    "card": {"model": "digits", "version": "1.1.0"},
    "markdown": "# digits 1.1.0\n",
    "plots": {"confusion": {"title": "Classes", "description": "Off the diagonal: 2 of 360 rows."}},
}
PlotName = Annotated[str, Path(pattern=r"^[a-z0-9-]{1,40}$")]


class PlotOut(BaseModel):
    """A picture of a card, in words; the picture itself is at ``card/plots/NAME.svg``."""

    title: str
    description: str


class CardOut(BaseModel):
    """A model card: its data, and the same as Markdown. ``digest`` is that of what is stored."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    digest: str
    card: dict[str, Any]
    markdown: str
    plots: dict[str, PlotOut]


@router.get("/{model}/releases/{version}/card", summary="A release's model card")
def read_card(
    model: ModelName,
    version: Version,
    _operator: Operator,
    database: UsedDatabase,
    staging: UsedStaging,
) -> CardOut:
    """What it is, where it comes from, how it was made small, what it passed and what it needs."""
    with database.reading() as session:
        record = service.get(session, model, version)
    found = _bundle(record, staging.store)
    return CardOut(
        digest=record.card or "",
        card=msgspec.to_builtins(found.card),
        markdown=found.markdown,
        plots={
            name: PlotOut(title=plot.title, description=plot.description)
            for name, plot in found.plots.items()
        },
    )


@router.get(
    "/{model}/releases/{version}/card.md",
    summary="A release's model card as Markdown",
    response_class=Response,
    responses={200: {"content": {"text/markdown": {"schema": {"type": "string"}}}}},
)
def read_markdown(
    model: ModelName,
    version: Version,
    _operator: Operator,
    database: UsedDatabase,
    staging: UsedStaging,
) -> Response:
    """For people; its pictures are at ``card/plots/NAME.svg``."""
    with database.reading() as session:
        found = _bundle(service.get(session, model, version), staging.store)
    text = found.markdown.replace("](plots/", "](card/plots/")
    return Response(text, media_type="text/markdown; charset=utf-8", headers=_HEADERS)


@router.get(
    "/{model}/releases/{version}/card/plots/{plot}.svg",
    summary="A picture of a model card",
    response_class=Response,
    responses={200: {"content": {"image/svg+xml": {"schema": {"type": "string"}}}}},
)
def read_plot(
    model: ModelName,
    version: Version,
    plot: PlotName,
    _operator: Operator,
    database: UsedDatabase,
    staging: UsedStaging,
) -> Response:
    """As SVG, which follows the reader's light or dark mode."""
    with database.reading() as session:
        found = _bundle(service.get(session, model, version), staging.store)
    if plot not in found.plots:
        raise NotFound(
            "no_such_plot", "The card has no such picture.", f"It has {', '.join(found.plots)}."
        )
    return Response(found.plots[plot].svg, media_type="image/svg+xml", headers=_HEADERS)


def _bundle(record: ReleaseRecord, store: Store) -> Bundle:
    if record.card is None:
        raise NotFound(
            "no_card",
            f"{record.model} {record.version} has no model card.",
            "A release gets one when it is staged; push it again under a new version.",
        )
    data = store.read_card(record.model, record.card, limit_bytes=bundle.BUNDLE_BYTES)
    try:
        if data is not None:
            return bundle.read(data)
    except Refused:
        pass  # as lost as if it were gone
    raise NotFound(
        "card_lost",
        f"The model card of {record.model} {record.version} is gone, or is not what was stored.",
        "Restore the store from a backup; the audit has its digest.",
    )
