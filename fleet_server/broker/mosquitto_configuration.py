"""What a Mosquitto is told: limits that lose nothing, and who may come in.

Decides the text of ``mosquitto.conf``, for the private Mosquitto and for one that somebody else
runs. Who may say what is in :mod:`.rules`; where the certificates come from is for others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOG_FILE = "mosquitto.log"


@dataclass(frozen=True, slots=True)
class MosquittoSecurity:
    """The files, in PEM, of a Mosquitto that lets in certified clients only.

    ``authorities`` issue clients' certificates, ``revoked`` holds a revocation list of each of
    them, ``certificate`` and ``key`` are the broker's own, ``access_list`` is :mod:`.rules`' text.
    """

    authorities: Path
    revoked: Path
    certificate: Path
    key: Path
    access_list: Path


def configuration(
    *,
    folder: Path,
    host: str,
    port: int,
    max_packet_size_bytes: int,
    user: str = "",
    security: MosquittoSecurity | None = None,
) -> str:
    """Return the text of ``mosquitto.conf``.

    Args:
        folder: where it keeps retained messages and its log.
        host: address to listen on; without ``security`` it has to be of loopback.
        port: to listen on.
        max_packet_size_bytes: of any packet.
        user: to run as; empty for Mosquitto's own choice.
        security: who may come in; None lets in everybody.
    """
    as_user = f"user {user}\n" if user else ""
    return f"""\
# Written by the fleet server; changes are lost.
per_listener_settings false
listener {port} {host}
{_access(security)}{as_user}persistence true
persistence_location {folder}/
autosave_interval 60
log_dest file {folder / LOG_FILE}
log_type error
log_type warning
log_type notice
log_type information
connection_messages false
set_tcp_nodelay true
# With the default limits (20 in flight, 1000 queued) it drops messages that it has already
# acknowledged; 0 for "no limit" is unreliable before 2.0.22.
max_inflight_messages 1000
max_queued_messages 100000
max_packet_size {max_packet_size_bytes}
"""


def _access(security: MosquittoSecurity | None) -> str:
    if security is None:
        return "allow_anonymous true\n"
    return f"""\
allow_anonymous false
cafile {security.authorities}
crlfile {security.revoked}
certfile {security.certificate}
keyfile {security.key}
tls_version tlsv1.2
require_certificate true
# The name in the certificate is who a client is, and its client identifier: nobody can take the
# session of another.
use_identity_as_username true
use_username_as_clientid true
acl_file {security.access_list}
"""
