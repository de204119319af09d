"""How the authorities of certificates stand, read from their folder for those who ask."""

from dataclasses import dataclass

from cryptography import x509

from fleet_server.trust.authority import certificates
from fleet_server.trust.authority.authority import SERVER_FILE, Authority
from fleet_server.trust.authority.standing import Line, Standing


@dataclass(frozen=True, slots=True)
class Known:
    """One authority: its name, what is believed of it, its fingerprint, when it expires (ms since
    1970)."""

    name: str
    standing: Standing
    fingerprint: str
    not_after_ms: int


def line_of(authority: Authority, line: Line) -> list[Known]:
    """Return the authorities of a line, the oldest first.

    Raises:
        OSError: if one cannot be read.
        ValueError: if one is damaged.
    """
    found = []
    for member in authority.members(line):
        data = (authority.folder / f"{member.name}.pem").read_bytes()
        certificate = x509.load_pem_x509_certificate(data)
        until_ms = certificates.milliseconds(certificate.not_valid_after_utc)
        fingerprint = certificates.fingerprint(certificate)
        found.append(Known(member.name, member.standing, fingerprint, until_ms))
    return found


def shown_until_ms(authority: Authority) -> int:
    """Return when the certificate that server and broker show expires, in ms since 1970.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged.
    """
    data = (authority.folder / SERVER_FILE).read_bytes()
    certificate = x509.load_pem_x509_certificate(data)
    return certificates.milliseconds(certificate.not_valid_after_utc)
