"""What follows when the repository of what exists has changed: the server obeys it itself.

The keyset that is vouched for is the one that the server signs by; whatever the broker must hold is
signed anew when another director or generation has come, and so is the audit's end; the newest root
is told over the broker; releases whose signature has come go on. Level-triggered: it heals what a
crash left half done: it runs at every start and after every such change.
"""

import threading
from collections.abc import Callable

import structlog

from fleet_contract.trust.keyset import KEYSET_PATH, read_keyset
from fleet_server.audit import verification
from fleet_server.audit.verification import Seal
from fleet_server.clock import Clock
from fleet_server.database import Database
from fleet_server.dispatch import service as dispatch
from fleet_server.dispatch.resigning import needs_resigning, resign_all
from fleet_server.releases import revocation
from fleet_server.releases import service as releases
from fleet_server.releases.staging import Staging
from fleet_server.trust.catalogue.repository import Catalogue
from fleet_server.trust.keyring import Keyring

log = structlog.get_logger(__name__)


class Succession:
    """Call it when something may have changed. Thread-safe."""

    def __init__(
        self,
        database: Database,
        catalogue: Catalogue,
        keyring: Keyring,
        staging: Staging,
        clock: Clock,
        wake: Callable[[], None],
        seal: Seal,
    ) -> None:
        self._database = database
        self._catalogue = catalogue
        self._keyring = keyring
        self._staging = staging
        self._clock = clock
        self._wake = wake
        self._seal = seal
        self._turn = threading.Lock()

    def start(self) -> None:
        """Bring everything in line with what is committed.

        Raises:
            StartError: if the keyset that devices believe names keys that are not here.
        """
        self()
        with self._database.reading() as session:
            models = releases.models(session)
        if not revocation.enforce(models, self._catalogue, self._keyring):
            log.warning("a revocation waits for signatures: edgefleet trust sign")

    def __call__(self) -> None:
        """Follow what is committed now.

        Raises:
            StartError: if the keyset that devices believe names keys that are not here.
        """
        with self._turn:
            adopt_keyset(self._catalogue, self._keyring)
            now_ms = self._clock.now_ms()
            with self._database.transaction() as session:
                others = needs_resigning(session, self._keyring)
                if others:
                    floor = self._keyring.keyset.epoch_floor + 1
                    count = resign_all(session, self._keyring, now_ms=now_ms, least_epoch=floor)
                    log.info("control messages signed anew", count=count)
                dispatch.put_root(
                    session,
                    fleet=self._keyring.fleet,
                    root=self._catalogue.root_bytes,
                    now_ms=now_ms,
                )
                if others:
                    # Whoever verifies the audit believes the keys of before no more.
                    verification.make_checkpoint(
                        session, self._seal, fleet=self._keyring.fleet, now_ms=now_ms
                    )
            self._staging.settle()
            self._wake()


def adopt_keyset(catalogue: Catalogue, keyring: Keyring) -> None:
    """Sign by the keyset that is vouched for; vouch for the keyring's if there is none, or if that
    one has a higher generation.

    Raises:
        StartError: if the keyset that devices believe names keys that are not here.
    """
    document = catalogue.document(KEYSET_PATH)
    if document is not None and document != keyring.keyset_bytes:
        vouched = read_keyset(document, fleet=keyring.fleet, held=None)
        if vouched.generation >= keyring.generation:
            keyring.adopt(document)
            log.info("keyset adopted", generation=keyring.generation)
            return
    if document != keyring.keyset_bytes:
        done = catalogue.coming_document(KEYSET_PATH) == keyring.keyset_bytes
        if done or not catalogue.publish_document(KEYSET_PATH, keyring.keyset_bytes):
            log.warning("the keyset waits for the signature of targets: edgefleet trust sign")
