"""The errors of the agent: what an application meets at predict, and why a step failed.

Foreign exceptions (of the runtime, the network, the file system) are wrapped into these where
they enter. What the agent does about a failed step is decided in the core.
"""

from fleet_contract.errors import Reason


class AgentError(Exception):
    """Root of everything that the agent raises on purpose."""


class StepFailed(AgentError):
    """A step on the way to a release failed; the release is not on the device, nothing changed.

    ``reason`` is reported to the fleet server, ``detail`` is one sentence for a person.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


class EnrolmentFailed(AgentError):
    """The device could not join a fleet; nothing was stored. The message says what to do."""


class NotEnrolled(AgentError):
    """The folder holds no identity: the device has not joined a fleet yet."""


class IdentityUnusable(AgentError):
    """The device's key, certificate or anchors cannot be used: it answers, and stays offline."""


class AnchorsUnusable(IdentityUnusable):
    """Only the anchors are amiss: they prove themselves and can be fetched again."""


class StartFailed(AgentError):
    """The agent cannot run in this folder; the message says why."""


class PredictionError(AgentError):
    """Root of what ``predict`` raises: the application has no answer and must do without."""


class NoModel(PredictionError):
    """No release of this model is active on the device yet."""


class ModelDisabled(PredictionError):
    """The fleet has taken the model away on purpose: use the application's own fallback."""


class InputRejected(PredictionError):
    """The inputs are not those that the active release was made for; counted as an error."""


class InferenceFailed(PredictionError):
    """The runtime failed on these inputs; counted as an error. The model stays active."""
