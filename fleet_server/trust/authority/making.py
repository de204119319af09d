"""The first authorities of a fleet, and how an authority is written."""

from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from fleet_contract import codec
from fleet_server.trust import durable
from fleet_server.trust.authority import certificates
from fleet_server.trust.authority.certificates import Issuer, RandomBytes
from fleet_server.trust.authority.standing import Authorities, Line, Member, Standing

STATE_FILE = "authorities.json"


def make_authorities(folder: Path, *, fleet: str, random_bytes: RandomBytes, now_ms: int) -> bytes:
    """Make the first authorities of both lines in ``folder``, which must not exist.

    Returns:
        The anchors: the certificates, in PEM, that vouch for the server and the broker.

    Raises:
        OSError: if it cannot be written.
    """
    # Everything appears at once: a crash in between leaves a folder that nobody reads.
    fresh = folder.with_name(f"{folder.name}.new")
    fresh.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines: dict[Line, list[Member]] = {}
    for line in Line:
        name = f"{line}-1"
        issuer = certificates.make_authority(
            f"{fleet} {line}s", random_bytes=random_bytes, now_ms=now_ms
        )
        write_authority(fresh, name, issuer)
        lines[line] = [Member(name, Standing.ISSUES)]
    state = Authorities(lines[Line.DEVICE], lines[Line.SERVER])
    durable.write_file(fresh / STATE_FILE, codec.encode_json(state))
    fresh.rename(folder)
    durable.sync_folder(folder.parent)
    return (folder / f"{state.issuing(Line.SERVER).name}.pem").read_bytes()


def write_authority(folder: Path, name: str, issuer: Issuer) -> None:
    """Write an authority's certificate and its key. Raises OSError."""
    durable.write_file(folder / f"{name}.key", certificates.write_key(issuer.key))
    pem = issuer.certificate.public_bytes(Encoding.PEM)
    durable.write_file(folder / f"{name}.pem", pem)
