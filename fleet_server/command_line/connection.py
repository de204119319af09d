"""The command line's way to the server: which one, as whom, and what its errors mean.

The address comes from --url, EDGEFLEET_URL, or what the server of the data folder wrote down; the
token from --token, EDGEFLEET_TOKEN, or that folder's admin-token.
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import typer

from fleet_server.command_line.output import CommandError
from fleet_server.data_folder import TOKEN_FILE, remembered_url
from fleet_server.settings import Settings

TIMEOUT_S = 60.0
PASSING = (429, 502, 503, 504)
"""Answers of a server that has too much to do, or of a proxy whose server is being restarted."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which server is meant; empty values are looked up in the data folder."""

    url: str
    token: str
    data_dir: Path
    change_ticket: str = ""

    def find_url(self) -> str:
        """The server's address."""
        found = self.url or remembered_url(self.data_dir) or Settings(data_dir=self.data_dir).url
        return found.rstrip("/")

    def find_token(self) -> str:
        """The operator's token.

        Raises:
            CommandError: if there is none.
        """
        if self.token:
            return self.token
        path = self.data_dir / TOKEN_FILE
        try:
            return path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(
                f"There is no token: {path} cannot be read.",
                "Start the server by: edgefleet server; or give --data-dir, --token or "
                "EDGEFLEET_TOKEN.",
            ) from error


class Unreachable(CommandError):
    """The server did not answer, or the connection broke: it may work in a moment."""


class NoConnection(Unreachable):
    """There was not even a connection: nothing was sent."""


def may_pass(error: CommandError) -> bool:
    """Say whether the same call may work in a moment."""
    status = (error.problem or {}).get("status")
    return isinstance(error, Unreachable) or status in PASSING


class Connection:
    """Calls the server's API; every refusal becomes a CommandError with the server's advice."""

    def __init__(self, target: Target) -> None:
        self.url = target.find_url()
        headers = {
            "Authorization": f"Bearer {target.find_token()}",
            # The audit says which program called.
            "User-Agent": f"edgefleet/{version('edgefleet')}",
        }
        if target.change_ticket:
            headers["X-Change-Ticket"] = target.change_ticket
        try:
            self._client = httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT_S)
        except httpx.InvalidURL as error:
            raise _no_url(self.url) from error

    def close(self) -> None:
        """Close what is kept open between calls."""
        self._client.close()

    def get(self, path: str, **parameters: Any) -> Any:
        """Return the JSON of a GET; parameters that are None are left out."""
        given = {name: value for name, value in parameters.items() if value is not None}
        return self.call("GET", path, params=given)

    def post(self, path: str, body: Any = None) -> Any:
        """Return the JSON of a POST with a JSON body."""
        return self.call("POST", path, json=body)

    def put(self, path: str, body: Any) -> Any:
        """Return the JSON of a PUT with a JSON body."""
        return self.call("PUT", path, json=body)

    def delete(self, path: str) -> Any:
        """Return the JSON of a DELETE."""
        return self.call("DELETE", path)

    def text(self, path: str, **parameters: Any) -> str:
        """Return the body of a GET as it is."""
        return self.send("GET", path, params=parameters).text

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Return the JSON of any call; ``options`` are httpx's.

        Raises:
            CommandError: if the server does not answer, or refuses.
        """
        response = self.send(method, path, **options)
        return response.json() if response.content else None

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Return the answer to any call that the server did not refuse; like :meth:`call`."""
        try:
            response = self._client.request(method, path, **options)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise _no_url(self.url) from error
        except httpx.TimeoutException as error:
            raise Unreachable(
                f"The server at {self.url} did not answer in time.",
                f"It may still do what was asked. See how it is: {self.url}/ready, and its log.",
            ) from error
        except httpx.TransportError as error:
            kind = NoConnection if isinstance(error, httpx.ConnectError) else Unreachable
            raise kind(
                f"The server at {self.url} cannot be reached.",
                "Start it by: edgefleet server; or name another by --url or EDGEFLEET_URL.",
            ) from error
        if response.is_success:
            return response
        raise _refusal(response)


def connect(context: typer.Context) -> Connection:
    """Return the connection that the options before the command ask for."""
    target = context.find_root().obj
    assert isinstance(target, Target)
    connection = Connection(target)
    context.call_on_close(connection.close)
    return connection


def _no_url(url: str) -> CommandError:
    return CommandError(
        f"{url!r} is not the URL of a server.",
        "Write it as http://HOST:PORT, in --url or EDGEFLEET_URL.",
    )


def _refusal(response: httpx.Response) -> CommandError:
    try:
        problem = response.json()
        detail, advice = str(problem["detail"]), str(problem.get("advice", ""))
    except (ValueError, KeyError, TypeError):
        kind = Unreachable if response.status_code in PASSING else CommandError
        return kind(
            f"The server answered {response.status_code}, and not in its own words.",
            "Is this address really that of an edgefleet server? Check --url.",
        )
    return CommandError(detail, advice, problem)
