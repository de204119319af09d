"""The errors of the contract, and the reason codes that devices report.

Any input to this package yields a result or one of these errors, never a stray ``ValueError``.
What a peer does about a refusal is not decided here.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why something was refused or failed; the value travels in progress messages."""

    # Reading a document (fleet_contract.codec, fleet_contract.trust)
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    UNKNOWN_KEY = "unknown_key"
    BAD_SIGNATURE = "bad_signature"
    WRONG_AUDIENCE = "wrong_audience"
    OLD_GENERATION = "old_generation"
    UNCONFIRMED_GENERATION = "unconfirmed_generation"
    OLD_EPOCH = "old_epoch"
    EQUIVOCATION = "equivocation"
    EXPIRED = "expired"
    # What exists (the TUF repository)
    BAD_METADATA = "bad_metadata"
    OLD_METADATA = "old_metadata"
    UNKNOWN_TARGET = "unknown_target"
    REVOKED_RELEASE = "revoked_release"
    # Getting a release onto a device
    DOWNLOAD_FAILED = "download_failed"
    WRONG_SIZE = "wrong_size"
    WRONG_HASH = "wrong_hash"
    DISK_FULL = "disk_full"
    NO_VARIANT = "no_variant"
    BROKEN_MODEL = "broken_model"
    GOLDEN_MISMATCH = "golden_mismatch"
    PROBE_CRASHED = "probe_crashed"
    PROBE_TIMED_OUT = "probe_timed_out"
    ACTIVATION_FAILED = "activation_failed"
    # Living with a release
    RESTARTED = "restarted"
    LOCAL_ERROR_RATE = "local_error_rate"
    QUARANTINED = "quarantined"
    BLOCKED = "blocked"
    # Ends that are nobody's failure
    SUPERSEDED = "superseded"
    CANCELED = "canceled"
    ROLLED_BACK = "rolled_back"
    STOPPED = "stopped"


class ContractError(Exception):
    """Root of everything that this package raises."""


class InvalidName(ContractError):
    """A fleet, cohort, device, model or version has not the form that the wire allows."""


class Refused(ContractError):
    """A document or a file failed a check.

    Attributes:
        reason: the machine-readable code, reported to the fleet server.
        detail: one sentence for a person; never holds a secret.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


class SketchMismatch(ContractError):
    """Two sketches cannot be merged because they were made on different edges or vocabularies."""
