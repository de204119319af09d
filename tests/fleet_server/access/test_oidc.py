"""Guards from identity tokens that are forged, stale, of another issuer, or of another audience."""

from __future__ import annotations

import base64
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from fleet_server.access import oidc
from fleet_server.access.oidc import Issuer, Verifier
from fleet_server.errors import Unauthorized, Unavailable

NOW_MS = 1_795_000_000_000
NOW_S = NOW_MS // 1_000
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())


def public_jwk(key: Any, key_id: str, kind: Any = jwt.algorithms.ECAlgorithm) -> dict[str, Any]:
    found: dict[str, Any] = kind.to_jwk(key.public_key(), as_dict=True)
    return {**found, "kid": key_id, "use": "sig"}


def public_pem(key: Any) -> str:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


@dataclass
class LocalIssuer:
    """An identity provider on a port of its own."""

    url: str
    keys: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0
    down: bool = False
    name: str = ""

    def token(
        self, key: Any = KEY, key_id: str = "k1", algorithm: str = "ES256", **claims: Any
    ) -> str:
        body = {
            "iss": self.url,
            "aud": "edgefleet",
            "sub": "ann",
            "iat": NOW_S,
            "exp": NOW_S + 300,
            "roles": ["operator"],
        }
        body = {name: value for name, value in (body | claims).items() if value is not None}
        return jwt.encode(body, key, algorithm, headers={"kid": key_id})


@pytest.fixture
def issuer() -> Iterator[LocalIssuer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            local.asked += 1
            if self.path.endswith("openid-configuration"):
                body: Any = {"issuer": local.name or local.url, "jwks_uri": f"{local.url}/keys"}
            else:
                body = {"keys": local.keys}
            data = json.dumps(body).encode()
            self.send_response(500 if local.down else 200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        local = LocalIssuer(f"http://127.0.0.1:{server.server_port}", [public_jwk(KEY, "k1")])
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield local
        server.shutdown()
        thread.join(60)


@pytest.fixture
def verifier(issuer: LocalIssuer) -> Verifier:
    return Verifier(Issuer(issuer.url, "edgefleet", "roles", "sub"), oidc.fetch_json)


def read(verifier: Verifier, token: str, monotonic_ms: int = 0) -> oidc.Claims:
    return verifier.read(token, now_ms=NOW_MS, monotonic_ms=monotonic_ms)


def test_roles_of_the_claim(issuer: LocalIssuer, verifier: Verifier) -> None:
    assert read(verifier, issuer.token()) == oidc.Claims("oidc:ann", ("operator",))
    assert read(verifier, issuer.token(roles="viewer approver")).roles == ("viewer", "approver")
    assert read(verifier, issuer.token(roles={"a": 1})).roles == ()
    nested = Verifier(
        Issuer(issuer.url, "edgefleet", "realm_access.roles", "email"), oidc.fetch_json
    )
    token = issuer.token(realm_access={"roles": ["admin", 7]}, email="ann@example.org")
    assert read(nested, token) == oidc.Claims("oidc:ann@example.org", ("admin",))


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("another issuer", {"iss": "https://evil.example"}),
    ("another audience", {"aud": "mail"}),
    ("no audience", {"aud": None}),
    ("no end", {"exp": None}),
    ("expired", {"exp": NOW_S - 61}),
    ("not yet", {"nbf": NOW_S + 61}),
    ("made tomorrow", {"iat": NOW_S + 86_400}),
    ("no time", {"iat": True}),
    ("an end that never comes", {"exp": 2**63}),
    ("nobody", {"sub": None}),
    ("a name with a line", {"sub": "ann\nadmin"}),
    ("a name without end", {"sub": "x" * 59}),
    ("another key", {"key": OTHER}),
    ("a key that is not listed", {"key_id": "k9"}),
]


@pytest.mark.parametrize("changes", [item[1] for item in WRONG], ids=[item[0] for item in WRONG])
def test_token_that_must_not_be_believed(
    issuer: LocalIssuer, verifier: Verifier, changes: dict[str, Any]
) -> None:
    with pytest.raises(Unauthorized):
        read(verifier, issuer.token(**changes))
    read(verifier, issuer.token())


def unsigned(header: dict[str, Any], issuer: LocalIssuer) -> str:
    body = issuer.token().split(".")[1]
    head = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    return f"{head}.{body}."


def test_algorithm_that_the_token_chooses(issuer: LocalIssuer, verifier: Verifier) -> None:
    for algorithm in ("none", "None", "HS256"):
        with pytest.raises(Unauthorized):
            read(verifier, unsigned({"alg": algorithm, "kid": "k1"}, issuer))
    # The public key, which everybody has, as the secret of a symmetric signature.
    signed = unsigned({"alg": "HS256", "kid": "k1"}, issuer).rstrip(".")
    for secret in (json.dumps(public_jwk(KEY, "k1")), public_pem(KEY)):
        mac = hmac.digest(secret.encode(), signed.encode(), "sha256")
        with pytest.raises(Unauthorized):
            read(verifier, f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}")


def test_symmetric_key_that_the_issuer_lists_by_mistake(issuer: LocalIssuer) -> None:
    secret = b"s" * 64
    encoded = base64.urlsafe_b64encode(secret).rstrip(b"=").decode()
    issuer.keys.append({"kty": "oct", "k": encoded, "kid": "shared", "alg": "HS256"})
    verifier = Verifier(Issuer(issuer.url, "edgefleet", "roles", "sub"), oidc.fetch_json)
    with pytest.raises(Unauthorized):
        read(verifier, issuer.token(key=secret, key_id="shared", algorithm="HS256"))


def test_key_that_the_issuer_changed(issuer: LocalIssuer, verifier: Verifier) -> None:
    read(verifier, issuer.token())
    fresh = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    issuer.keys = [public_jwk(fresh, "k2", jwt.algorithms.RSAAlgorithm)]
    token = issuer.token(fresh, "k2", "RS256")
    with pytest.raises(Unauthorized):
        read(verifier, token, 29_999)
    assert read(verifier, token, 30_000).user == "oidc:ann"
    with pytest.raises(Unauthorized):
        read(verifier, issuer.token(), 30_001)


def test_invented_keys_that_flood_the_issuer(issuer: LocalIssuer, verifier: Verifier) -> None:
    for number in range(50):
        with pytest.raises(Unauthorized):
            read(verifier, issuer.token(key_id=f"invented-{number}"), number)
    assert issuer.asked == 2


def test_key_that_lives_on_because_the_issuer_is_down(
    issuer: LocalIssuer, verifier: Verifier
) -> None:
    read(verifier, issuer.token())
    issuer.down = True
    for later_ms in (3_600_000, 3_600_001, 3_640_000):
        with pytest.raises(Unavailable):
            read(verifier, issuer.token(), later_ms)


def test_issuer_that_calls_itself_by_another_name(issuer: LocalIssuer, verifier: Verifier) -> None:
    issuer.name = "https://evil.example"
    with pytest.raises(Unavailable):
        read(verifier, issuer.token())


@given(st.text(max_size=200) | st.lists(st.text(max_size=30), max_size=4).map(".".join))
def test_text_that_is_no_token(text: str) -> None:
    def no_fetch(_url: str) -> Any:
        raise AssertionError("nothing is fetched for what is no token")

    verifier = Verifier(Issuer("https://issuer.example", "edgefleet", "roles", "sub"), no_fetch)
    with pytest.raises(Unauthorized):
        read(verifier, text)


@pytest.mark.parametrize(
    "url", ["http://issuer.example", "ftp://x", "https://", "x", "http://[", "file:///etc/passwd"]
)
def test_address_that_anybody_can_answer_at(url: str) -> None:
    assert not oidc.is_safe_url(url)


def test_identity_token_at_a_running_server(
    issuer: LocalIssuer, start_server: Callable[..., Any], clock: Any
) -> None:
    server = start_server(clock, oidc_issuer=issuer.url, oidc_audience="edgefleet")

    def ask(method: str, token: str) -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        body = {"stopped": True, "reason": "smoke"}
        return server.anonymous.request(method, "/v1/fleet/stop", headers=headers, json=body)

    assert ask("POST", issuer.token(roles=["viewer"])).status_code == 403
    assert ask("GET", issuer.token(roles=["viewer"])).status_code == 200
    none = ask("GET", issuer.token(roles=["gardener"]))
    assert none.status_code == 403 and none.json()["type"].endswith("no_role")
    assert ask("POST", issuer.token(key=OTHER)).status_code == 401
    token = issuer.token()
    assert ask("POST", token).status_code == 200
    audit = server.client.get("/v1/audit")
    assert audit.json()["entries"][0]["user"] == "oidc:ann"
    assert token not in audit.text
    # Tokens of the API go on beside it.
    assert server.client.get("/v1/tokens").status_code == 200
