"""Which releases somebody looks for: by tag, by stage, by a word.

A pure choice among records. A word is found, whatever its case, in what names or describes a
release: model, version, tags, owner, licence, commit, run, data set and notes.
"""

from dataclasses import dataclass

from fleet_server.releases.records import ReleaseRecord
from fleet_server.releases.states import ReleaseState, Stage

SEARCH_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for; None asks for nothing. Everything that is asked for has to hold."""

    tag: str | None = None
    search: str | None = None
    stage: Stage | None = None

    def choose(self, records: list[ReleaseRecord]) -> list[ReleaseRecord]:
        """Return the records that fit, in their order."""
        return [record for record in records if self._fits(record)]

    def _fits(self, record: ReleaseRecord) -> bool:
        metadata = record.upload.options.metadata
        if self.tag is not None and self.tag not in metadata.tags:
            return False
        # Only what is staged has a stage that means anything.
        if self.stage is not None and (record.stage, record.state) != (
            self.stage,
            ReleaseState.STAGED,
        ):
            return False
        return self.search is None or any(
            self.search.casefold() in text.casefold() for text in _texts(record)
        )


def _texts(record: ReleaseRecord) -> list[str]:
    metadata = record.upload.options.metadata
    single = (
        metadata.owner,
        metadata.licence,
        metadata.git_commit,
        metadata.run_id,
        metadata.dataset_hash,
        metadata.imported_from,
    )
    return [
        record.model,
        record.version,
        *metadata.tags,
        *metadata.notes.values(),
        *metadata.datasets.values(),
        *(text for text in single if text is not None),
    ]
