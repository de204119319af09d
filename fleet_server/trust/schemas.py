"""What the ceremonies' endpoints take and show."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

KeyId = Annotated[str, Field(pattern="^[0-9a-f]{64}$", examples=["ab" * 32])]
RoleName = Annotated[str, Field(max_length=100, pattern=r"^[a-z0-9][a-z0-9._-]*$")]


class RoleKey(BaseModel):
    """A public key; ``here`` says that this server can sign with it."""

    keyid: str
    here: bool


class RoleStatus(BaseModel):
    """A role: whose signatures it needs, and until when its metadata is good."""

    role: str
    version: int
    expires_ms: int
    threshold: int
    keys: list[RoleKey]


class KeyIn(BaseModel):
    """A public key as securesystemslib writes it."""

    model_config = ConfigDict(extra="forbid")

    keyid: KeyId
    public: dict[str, Any]


class FileNeed(BaseModel):
    """What one file of a proposal needs: ``missing`` more signatures by ``unsigned`` keys."""

    role: str
    by: str
    threshold: int
    signed: list[str]
    unsigned: list[KeyIn]
    missing: int


class ProposedFile(BaseModel):
    """The bytes to be signed (base64), and those of the committed version."""

    role: str
    signed_part: str
    before: str | None


class ProposalShown(BaseModel):
    """A change that waits for signatures."""

    id: Annotated[str, Field(examples=["0123456789abcdef"])]
    made_ms: int
    why: list[str]
    needs: list[FileNeed]
    files: list[ProposedFile]
    documents: dict[str, str] = Field(description="path → base64")


class Pending(BaseModel):
    """Everything that waits."""

    proposals: list[ProposalShown]


class TrustStatus(BaseModel):
    """How trust stands."""

    model_config = ConfigDict(json_schema_extra={"example": {"generation": 1, "warnings": []}})

    fleet: str
    roles: list[RoleStatus]
    generation: int
    epoch_floor: int
    directors: list[str]
    release_floors: dict[str, int]
    pending: list[str]
    warnings: list[str]
    next_step: str


class SignatureIn(BaseModel):
    """One signature in hexadecimal."""

    model_config = ConfigDict(extra="forbid")

    role: RoleName
    keyid: KeyId
    signature: Annotated[str, Field(pattern="^[0-9a-f]{2,2048}$", examples=["00" * 64])]


class SignaturesIn(BaseModel):
    """Signatures for one proposal."""

    model_config = ConfigDict(extra="forbid")

    proposal: Annotated[str, Field(pattern="^[0-9a-f]{16}$", examples=["0123456789abcdef"])]
    signatures: Annotated[list[SignatureIn], Field(min_length=1, max_length=2_000)]


class RotationIn(BaseModel):
    """Which role gets which keys; none means one that the server makes."""

    model_config = ConfigDict(extra="forbid")

    role: Annotated[
        str, Field(pattern="^(root|targets|snapshot|timestamp|director)$", examples=["snapshot"])
    ]
    keys: Annotated[list[KeyIn], Field(max_length=16)] = []
    threshold: Annotated[int, Field(ge=1, le=16)] = 1
    lost: bool = False


class RootIn(BaseModel):
    """A root as a file, in base64."""

    model_config = ConfigDict(extra="forbid")

    root: Annotated[str, Field(max_length=400_000, examples=["eyJzaWduYXR1cmVzIjogW119"])]


class Outcome(BaseModel):
    """Whether it is done, or waits for signatures."""

    committed: bool
    what: Annotated[str, Field(examples=["another key for snapshot"])]
