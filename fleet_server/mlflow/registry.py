"""Asks an MLflow server: which files a model consists of, which run made it, and for their bytes.

Decides which answers are believed: every one is bounded before it is read, and no path of an answer
becomes a path on this machine. Files are read through the server's own proxy of artifacts; one that
hands out locations of an object store instead is refused, since their keys are nobody's here.
Source of the calls: https://mlflow.org/docs/latest/api_reference/rest-api.html, and
``mlflow server --help`` for ``--serve-artifacts``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Meta

from fleet_contract import codec
from fleet_contract.errors import Refused
from fleet_server.errors import DomainError, Invalid, NotFound, TooLarge
from fleet_server.mlflow.references import OfRun, Registered

ANSWER_BYTES = 8 * 1024**2
FILES = 1_000
TIMEOUT_S = 60.0
# A file name of this machine, too: no path, nothing hidden, no control characters.
_PLAIN_NAME = re.compile(r"^[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,199}\Z")
_PROXY = "mlflow-artifacts:/"

T = TypeVar("T")


class Pair(msgspec.Struct, frozen=True):
    """A parameter or a tag."""

    key: str
    value: str = ""


class Metric(msgspec.Struct, frozen=True):
    """The last value of a metric; MLflow writes what is no number as a text."""

    key: str
    value: float | str


class Dataset(msgspec.Struct, frozen=True):
    """A data set as MLflow describes it; ``source`` is JSON in a text."""

    name: str = ""
    digest: str = ""
    source: str = ""


class DatasetInput(msgspec.Struct, frozen=True):
    """A data set that a run used, and as what."""

    dataset: Dataset
    tags: list[Pair] = []


class ModelOutput(msgspec.Struct, frozen=True):
    """A model that a run made."""

    model_id: str


class RunInfo(msgspec.Struct, frozen=True):
    """When a run was, in milliseconds since 1970, and where its files lie."""

    run_id: str
    artifact_uri: str = ""
    start_time: int = 0
    end_time: int = 0


class RunData(msgspec.Struct, frozen=True):
    """What a run recorded."""

    params: list[Pair] = []
    metrics: list[Metric] = []
    tags: list[Pair] = []


class RunInputs(msgspec.Struct, frozen=True):
    """What a run was made of."""

    dataset_inputs: list[DatasetInput] = []


class RunOutputs(msgspec.Struct, frozen=True):
    """What a run made."""

    model_outputs: list[ModelOutput] = []


class Run(msgspec.Struct, frozen=True):
    """A training run."""

    info: RunInfo
    data: RunData = RunData()
    inputs: RunInputs = RunInputs()
    outputs: RunOutputs = RunOutputs()


class ModelVersion(msgspec.Struct, frozen=True):
    """A version of a registered model."""

    name: str
    version: str
    run_id: str = ""
    tags: list[Pair] = []


class _RunAnswer(msgspec.Struct):
    run: Run


class _VersionAnswer(msgspec.Struct):
    model_version: ModelVersion


class _UriAnswer(msgspec.Struct):
    artifact_uri: str


class _File(msgspec.Struct):
    path: str
    is_dir: bool = False
    file_size: int = 0


class _FilesAnswer(msgspec.Struct):
    files: Annotated[list[_File], Meta(max_length=FILES)] = []


class _LoggedInfo(msgspec.Struct):
    name: str
    artifact_uri: str


class _Logged(msgspec.Struct):
    info: _LoggedInfo


class _LoggedAnswer(msgspec.Struct):
    model: _Logged


@dataclass(frozen=True, slots=True)
class Found:
    """A model in the registry: the run that made it, if it is known, and its folder of files."""

    origin: str
    folder: str
    run: Run | None
    version: ModelVersion | None


class Registry:
    """An MLflow server.

    Args:
        url: of the tracking server, http or https.
        credentials: httpx's ``auth`` or ``headers``; they go to this server alone.
    """

    def __init__(self, url: str, credentials: Mapping[str, Any]) -> None:
        self.url = url.rstrip("/")
        try:
            # Redirects are not followed: credentials would go along.
            self._client = httpx.Client(base_url=self.url, timeout=TIMEOUT_S, **credentials)
        except httpx.InvalidURL as error:
            raise _no_url(url) from error
        if self._client.base_url.scheme not in ("http", "https"):
            raise _no_url(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def find(self, wanted: Registered | OfRun) -> Found:
        """Return what a reference names.

        Raises:
            NotFound: if the registry has no such model or run.
            DomainError: if the server does not answer, or not as MLflow does.
        """
        if isinstance(wanted, OfRun):
            run = self._run(wanted.run)
            folder = self._folder_of_run(run, wanted.path)
            return Found(f"mlflow:runs:/{wanted.run}/{wanted.path}", folder, run, None)
        if wanted.alias:
            answer = self._ask(
                "registered-models/alias", _VersionAnswer, name=wanted.name, alias=wanted.alias
            )
        else:
            answer = self._ask(
                "model-versions/get", _VersionAnswer, name=wanted.name, version=wanted.version
            )
        version = answer.model_version
        uri = self._ask(
            "model-versions/get-download-uri",
            _UriAnswer,
            name=version.name,
            version=version.version,
        )
        made_by = self._run(version.run_id) if version.run_id else None
        # By its number: an alias may name another one tomorrow.
        origin = f"mlflow:models:/{version.name}/{version.version}"
        return Found(origin, _proxied(uri.artifact_uri), made_by, version)

    def files(self, folder: str) -> dict[str, int]:
        """Return the files that lie in a folder, not in folders below it: name → size in bytes."""
        answer = self._json("/api/2.0/mlflow-artifacts/artifacts", _FilesAnswer, {"path": folder})
        return {
            item.path: item.file_size
            for item in answer.files
            if not item.is_dir and _PLAIN_NAME.match(item.path)
        }

    def root_of(self, run: Run) -> str:
        """Return the folder of a run's own files."""
        return _proxied(run.info.artifact_uri)

    def download(self, folder: str, name: str, to: Path, limit_bytes: int) -> None:
        """Write a file of the registry to ``to``.

        Raises:
            TooLarge: above ``limit_bytes``; nothing is kept then.
            DomainError: if it cannot be had.
        """
        path = f"/api/2.0/mlflow-artifacts/artifacts/{quote(f'{folder}/{name}')}"
        size_bytes = 0
        try:
            with self._client.stream("GET", path) as response, to.open("wb") as file:
                self._check(response)
                for chunk in response.iter_bytes(1 << 16):
                    size_bytes += len(chunk)
                    if size_bytes > limit_bytes:
                        raise TooLarge(
                            "too_large", f"{name} is larger than {limit_bytes >> 20} MiB."
                        )
                    file.write(chunk)
        except httpx.HTTPError as error:
            to.unlink(missing_ok=True)
            raise self._unreachable() from error
        except DomainError:
            to.unlink(missing_ok=True)
            raise

    def _run(self, run: str) -> Run:
        return self._ask("runs/get", _RunAnswer, run_id=run).run

    def _folder_of_run(self, run: Run, path: str) -> str:
        """Return where a run's path lies: among its files, or as a model that it logged there."""
        folder = f"{self.root_of(run)}/{path}"
        if self.files(folder):
            return folder
        for output in run.outputs.model_outputs:
            model = quote(output.model_id, safe="")
            logged = self._ask(f"logged-models/{model}", _LoggedAnswer).model.info
            if logged.name == path:
                return _proxied(logged.artifact_uri)
        raise NotFound("no_such_files", f"Run {run.info.run_id} has no files under {path}.")

    def _ask(self, call: str, kind: type[T], **parameters: str) -> T:
        return self._json(f"/api/2.0/mlflow/{call}", kind, parameters)

    def _json(self, path: str, kind: type[T], parameters: Mapping[str, str]) -> T:
        data = bytearray()
        try:
            with self._client.stream("GET", path, params=parameters) as response:
                self._check(response)
                for chunk in response.iter_bytes(1 << 16):
                    data += chunk
                    if len(data) > ANSWER_BYTES:
                        raise self._strange()
            return codec.decode_json(bytes(data), kind, limit_bytes=ANSWER_BYTES)
        except httpx.HTTPError as error:
            raise self._unreachable() from error
        except Refused as error:
            raise self._strange() from error

    def _check(self, response: httpx.Response) -> None:
        if response.status_code == httpx.codes.NOT_FOUND:
            raise NotFound(
                "no_such_model",
                f"The MLflow server at {self.url} knows nothing of this name.",
                "See what it has in its own pages; --tracking-uri names another server.",
            )
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise DomainError(
                "mlflow_refuses",
                f"The MLflow server at {self.url} does not let you in.",
                "Set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD.",
            )
        if not response.is_success:
            raise self._strange()

    def _unreachable(self) -> DomainError:
        return DomainError(
            "mlflow_unreachable",
            f"The MLflow server at {self.url} cannot be reached.",
            "Name it by --tracking-uri or MLFLOW_TRACKING_URI.",
        )

    def _strange(self) -> DomainError:
        return DomainError(
            "not_mlflow",
            f"{self.url} does not answer as an MLflow server does.",
            "Check --tracking-uri.",
        )


def _proxied(uri: str) -> str:
    """Return the folder of a location that the server itself hands out."""
    path = uri.removeprefix(_PROXY)
    if not uri.startswith(_PROXY) or path.startswith("/") or ".." in path.split("/"):
        raise Invalid(
            "artifacts_elsewhere",
            f"The registry does not hand out these files itself: they lie at {uri[:200]!r}.",
            "Let MLflow serve them (mlflow server --artifacts-destination), or download them and "
            "use edgefleet model push.",
        )
    return path.strip("/")


def _no_url(url: str) -> Invalid:
    return Invalid(
        "bad_tracking_uri",
        f"{url[:100]!r} is not the URL of an MLflow server.",
        "Write http://HOST:PORT in --tracking-uri or MLFLOW_TRACKING_URI.",
    )
