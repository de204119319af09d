"""Bearer tokens of an OpenID Connect provider: whose they are, and which roles they carry.

Decides which tokens are believed: signed by a key that the issuer publishes, by an asymmetric
algorithm of a short list, for this audience, and valid now. Keys are fetched from the issuer, in
bounded size and time, and not more often than every half minute whatever is presented.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import jwt

from fleet_server.errors import Forbidden, Unauthorized, Unavailable

ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")
KEY_KINDS = ("RSA", "EC", "OKP")
TOKEN_CHARACTERS = 8_192
NAME_CHARACTERS = 58
LEEWAY_MS = 60_000
KEYS_LIVE_MS = 3_600_000
REFETCH_MS = 30_000
TIMEOUT_S = 5.0
ANSWER_BYTES = 256 * 1024
KEYS_MOST = 50

Fetch = Callable[[str], Any]
"""Return the JSON behind a URL; raises Unavailable."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who is believed, as what, and which claims say so. A claim may be a path: ``a.b``."""

    url: str
    audience: str
    role_claim: str
    user_claim: str


@dataclass(frozen=True, slots=True)
class Claims:
    """Who a token is about, and the words of its role claim."""

    user: str
    roles: tuple[str, ...]


class Verifier:
    """Reads the tokens of one issuer. Safe to share by threads."""

    def __init__(self, issuer: Issuer, fetch: Fetch) -> None:
        self.issuer = issuer
        self._fetch = fetch
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_ms: int | None = None
        self._lock = threading.Lock()

    def read(self, token: str, *, now_ms: int, monotonic_ms: int) -> Claims:
        """Return what a token says.

        Raises:
            Unauthorized: if it is not to be believed, or not now.
            Unavailable: if the issuer's keys cannot be had.
        """
        key = self._key(_key_id(token), monotonic_ms)
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                audience=self.issuer.audience,
                issuer=self.issuer.url,
                # Times are checked below, by the server's one clock.
                options={
                    "require": ["exp", "iat", "iss", "aud"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise _refuse(f"it is not valid here ({type(error).__name__})") from error
        _check_times(claims, now_ms)
        return Claims(self._user(claims), _words(_at(claims, self.issuer.role_claim)))

    def _user(self, claims: Mapping[str, Any]) -> str:
        name = _at(claims, self.issuer.user_claim)
        if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARACTERS:
            raise _refuse(f"its claim {self.issuer.user_claim} is no name")
        if not (name.isascii() and name.isprintable()):
            raise _refuse(f"its claim {self.issuer.user_claim} is no name")
        return f"oidc:{name}"

    def _key(self, key_id: str, monotonic_ms: int) -> jwt.PyJWK:
        with self._lock:
            age_ms = None if self._fetched_ms is None else monotonic_ms - self._fetched_ms
            stale = age_ms is None or age_ms >= KEYS_LIVE_MS
            # A key that was not there may be a new one, or somebody's invention.
            unknown = key_id not in self._keys and age_ms is not None and age_ms >= REFETCH_MS
            if stale or unknown:
                # Counted before it is tried: an issuer that is down is not asked at every call.
                self._fetched_ms = monotonic_ms
                if stale:
                    # A key that the issuer took back must not live on because it is not reached.
                    self._keys = {}
                self._keys = self._fetch_keys()
            if not self._keys:
                raise _down("it gave no keys a moment ago")
            found = self._keys.get(key_id)
        if found is None:
            raise _refuse("its key is not one of the issuer's")
        return found

    def _fetch_keys(self) -> dict[str, jwt.PyJWK]:
        base = self.issuer.url.rstrip("/")
        document = self._fetch(f"{base}/.well-known/openid-configuration")
        if not isinstance(document, dict) or document.get("issuer") != self.issuer.url:
            raise _down("it calls itself by another name")
        where = document.get("jwks_uri")
        if not isinstance(where, str) or not is_safe_url(where):
            raise _down("it names no address of its keys that can be trusted")
        listed = self._fetch(where)
        keys = listed.get("keys") if isinstance(listed, dict) else None
        if not isinstance(keys, list):
            raise _down("it lists no keys")
        found = {}
        for item in keys[:KEYS_MOST]:
            if not isinstance(item, dict) or item.get("kty") not in KEY_KINDS:
                continue
            if item.get("use", "sig") != "sig" or not isinstance(item.get("kid"), str):
                continue
            try:
                found[item["kid"]] = jwt.PyJWK(item)
            except (jwt.PyJWTError, ValueError, TypeError):
                continue  # a kind of key that we cannot use
        return found


def fetch_json(url: str) -> Any:
    """Return the JSON behind a URL of the issuer.

    Raises:
        Unavailable: if there is none, in time and in bounds.
    """
    try:
        with httpx.stream("GET", url, timeout=TIMEOUT_S, follow_redirects=False) as answer:
            body = b""
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > ANSWER_BYTES:
                    raise _down("it answers with too much")
            if answer.status_code != 200:
                raise _down(f"it answers with {answer.status_code}")
        return httpx.Response(200, content=body).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, RecursionError) as error:
        raise _down(f"it does not answer ({type(error).__name__})") from error


def is_safe_url(url: str) -> bool:
    """Say whether a URL is HTTPS, or HTTP on this machine."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        return False
    local = parsed.host in {"127.0.0.1", "::1", "localhost"}
    return bool(parsed.host) and (parsed.scheme == "https" or (parsed.scheme == "http" and local))


def no_role(claims: Claims, claim: str) -> Forbidden:
    """Return the refusal of somebody who is known and has no role here."""
    return Forbidden(
        "no_role",
        f"{claims.user} has no role of this server in the claim {claim}.",
        "Give the user one of the roles of docs/reference/access.md at the identity provider.",
    )


def _key_id(token: str) -> str:
    if len(token) > TOKEN_CHARACTERS:
        raise _refuse("it is too long")
    try:
        found = jwt.get_unverified_header(token).get("kid")
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise _refuse("it is no JSON web token") from error
    if not isinstance(found, str):
        raise _refuse("it names no key")
    return found


def _check_times(claims: Mapping[str, Any], now_ms: int) -> None:
    times: dict[str, float] = {}
    for name in ("exp", "iat", "nbf"):
        value = claims.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
            raise _refuse(f"its claim {name} is no time")
        times[name] = value
    if times["exp"] * 1_000 + LEEWAY_MS <= now_ms:
        raise _refuse("it has expired")
    if max(times["iat"], times["nbf"]) * 1_000 - LEEWAY_MS > now_ms:
        raise _refuse("it is not valid yet")


def _at(claims: Mapping[str, Any], path: str) -> Any:
    """The claim of that whole name, else the one at the path."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for step in path.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, list):
        return ()
    return tuple(word for word in value[:100] if isinstance(word, str))


def _refuse(why: str) -> Unauthorized:
    return Unauthorized(
        "bad_identity_token",
        f"This token is not accepted: {why}.",
        "Sign in at your identity provider again.",
    )


def _down(why: str) -> Unavailable:
    return Unavailable(
        "identity_provider",
        f"The identity provider cannot be used: {why}.",
        "Try again in a moment, or use a token of edgefleet token create.",
    )
