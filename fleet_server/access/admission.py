"""Turns a credential into a user: API tokens, identity tokens, and the limit on guessing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fleet_server.access import oidc, service
from fleet_server.access.attempts import Attempts
from fleet_server.access.oidc import Issuer, Verifier
from fleet_server.access.roles import Roles, permissions_of, read_roles
from fleet_server.access.users import User
from fleet_server.clock import Clock
from fleet_server.database import Database
from fleet_server.errors import StartError, Unauthorized
from fleet_server.settings import Settings


class Admission:
    """What is needed to know who is asking.

    Raises:
        StartError: from the constructor, if the roles file or the issuer cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        clock: Clock,
        fetch: oidc.Fetch = oidc.fetch_json,
    ) -> None:
        self.roles: Roles = read_roles(settings.roles_file)
        self._fleet = settings.fleet
        self._database = database
        self._clock = clock
        self._attempts = Attempts()
        self._verifier = _verifier(settings, fetch)

    def admit(self, token: str, *, address: str) -> User:
        """Return who presents a token.

        Raises:
            Unauthorized: if nobody known does.
            Forbidden: if the token is for other fleets, or its bearer has no role.
            TooManyAttempts: after too many failures of this address.
            Unavailable: if the identity provider has to be asked and does not answer.
        """
        with self.attempt(address, token):
            if self._verifier is not None and not token.startswith(service.PREFIX):
                return self._of_issuer(self._verifier, token)
            with self._database.reading() as session:
                return service.authenticate(
                    session, self.roles, token, fleet=self._fleet, now_ms=self._clock.now_ms()
                )

    @contextmanager
    def attempt(self, address: str, credential: str) -> Iterator[None]:
        """Count what happens in the block as an attempt: Unauthorized is a failure.

        Raises:
            TooManyAttempts: if there were too many failures before.
        """
        hashed = service.hash_secret(credential)
        now_ms = self._clock.monotonic_ms()
        self._attempts.check(address, hashed, now_ms)
        try:
            yield
        except Unauthorized:
            self._attempts.failed(address, hashed, now_ms)
            raise
        self._attempts.succeeded(hashed)

    def _of_issuer(self, verifier: Verifier, token: str) -> User:
        claims = verifier.read(
            token, now_ms=self._clock.now_ms(), monotonic_ms=self._clock.monotonic_ms()
        )
        known = tuple(sorted({role for role in claims.roles if role in self.roles}))
        if not known:
            raise oidc.no_role(claims, verifier.issuer.role_claim)
        return User(claims.user, known, permissions_of(self.roles, known))


def _verifier(settings: Settings, fetch: Callable[[str], object]) -> Verifier | None:
    if not settings.oidc_issuer:
        return None
    if not settings.oidc_audience or not oidc.is_safe_url(settings.oidc_issuer):
        raise StartError(
            "bad_setting",
            "The identity provider cannot be used: it needs an https URL and an audience.",
            "Set EDGEFLEET_OIDC_ISSUER and EDGEFLEET_OIDC_AUDIENCE.",
        )
    return Verifier(
        Issuer(
            settings.oidc_issuer,
            settings.oidc_audience,
            settings.oidc_role_claim,
            settings.oidc_user_claim,
        ),
        fetch,
    )
