"""Guards from authorities that are lost, exchanged, believed too long, or of another fleet."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fleet_server.broker.rules import PUBLISHER, SERVER_IDENTITIES
from fleet_server.errors import Conflict, StartError
from fleet_server.trust.authority import certificates
from fleet_server.trust.authority.authority import (
    ANCHORS_FILE,
    CLIENTS_FILE,
    KNOWN_FILE,
    REVOKED_FILE,
    SERVER_FILE,
    Authority,
    open_authority,
)
from fleet_server.trust.authority.certificates import DAY_MS, HOUR_MS, Issued
from fleet_server.trust.authority.standing import Line
from tests.fleet_server.device_key import DeviceKey


def opened(folder: Path, clock: Any, **changed: Any) -> Authority:
    given: dict[str, Any] = {
        "fleet": "home",
        "hosts": ["127.0.0.1", "localhost"],
        "identities": SERVER_IDENTITIES,
        "may_make": True,
        "random_bytes": clock.random_bytes,
        "now_ms": clock.now_ms,
    }
    return open_authority(folder, **(given | changed))


def issue(authority: Authority, name: str = "dev-1") -> Issued:
    return authority.issue(DeviceKey().key.public_key(), name, lifetime_ms=HOUR_MS)


def authorities(path: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(path.read_bytes())


def is_believed_by_file(issued: Issued, path: Path, clock: Any) -> bool:
    """Ask cryptography's verifier, not OpenSSL: a second opinion on our certificates."""
    leaf = x509.load_pem_x509_certificate(issued.pem)
    issuers = {certificates.fingerprint(item) for item in authorities(path)}
    if issued.issuer not in issuers:
        return False
    for item in authorities(path):
        if certificates.fingerprint(item) == issued.issuer:
            leaf.verify_directly_issued_by(item)
    return True


def test_keys_that_others_can_read(authority: Authority) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in authority.folder.iterdir()}
    assert modes == {0o600}
    assert stat.S_IMODE(authority.folder.stat().st_mode) == 0o700


def test_restart_makes_new_authorities(authority: Authority, clock: Any) -> None:
    before = {path.name: path.read_bytes() for path in authority.folder.iterdir()}
    again = opened(authority.folder, clock)
    assert not again.made_now
    assert {path.name: path.read_bytes() for path in authority.folder.iterdir()} == before


def test_crash_before_all_files_are_there(tmp_path: Path, clock: Any) -> None:
    half = tmp_path / "pki.new"
    half.mkdir()
    (half / "device-1.key").write_bytes(b"half")
    made = opened(tmp_path / "pki", clock)
    assert made.made_now and not half.exists()
    assert issue(made).pem


@pytest.mark.parametrize("what", ["missing", "unreadable", "garbage", "of another"])
def test_authority_that_is_damaged_is_made_anew(
    authority: Authority, clock: Any, what: str
) -> None:
    key = authority.folder / "device-1.key"
    if what == "missing":
        key.unlink()
    elif what == "unreadable":
        key.unlink()
        key.mkdir()
    elif what == "garbage":
        key.write_bytes(b"garbage")
    else:
        key.write_bytes((authority.folder / "server-1.key").read_bytes())
    before = (authority.folder / "device-1.pem").read_bytes()
    with pytest.raises(StartError) as refused:
        opened(authority.folder, clock)
    assert refused.value.code == "pki_unusable"
    assert (authority.folder / "device-1.pem").read_bytes() == before


def test_lost_folder_of_a_fleet_that_has_devices(tmp_path: Path, clock: Any) -> None:
    with pytest.raises(StartError):
        opened(tmp_path / "pki", clock, may_make=False)
    assert not (tmp_path / "pki").exists()


def test_certificate_good_for_more_than_one_purpose(authority: Authority, clock: Any) -> None:
    leaf = x509.load_pem_x509_certificate(issue(authority).pem)
    store = Store(authorities(authority.folder / CLIENTS_FILE))
    at = leaf.not_valid_before_utc.replace(tzinfo=None)
    constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
    purposes = list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert not constraints.ca
    assert purposes == [ExtendedKeyUsageOID.CLIENT_AUTH]
    with pytest.raises(VerificationError):
        verifier = PolicyBuilder().store(store).time(at)
        verifier.build_server_verifier(x509.DNSName("dev-1")).verify(leaf, [])


def test_server_certificate_for_hosts_that_are_not_its_own(
    authority: Authority, clock: Any
) -> None:
    store = Store(authorities(authority.folder / ANCHORS_FILE))
    leaf = x509.load_pem_x509_certificate((authority.folder / SERVER_FILE).read_bytes())
    verifier = PolicyBuilder().store(store).time(leaf.not_valid_before_utc.replace(tzinfo=None))
    assert verifier.build_server_verifier(x509.DNSName("localhost")).verify(leaf, [])
    with pytest.raises(VerificationError):
        verifier.build_server_verifier(x509.DNSName("elsewhere")).verify(leaf, [])
    # With other hosts the server gets another certificate, under the same authority.
    opened(authority.folder, clock, hosts=["elsewhere"])
    leaf = x509.load_pem_x509_certificate((authority.folder / SERVER_FILE).read_bytes())
    verifier = PolicyBuilder().store(store).time(leaf.not_valid_before_utc.replace(tzinfo=None))
    assert verifier.build_server_verifier(x509.DNSName("elsewhere")).verify(leaf, [])


def test_own_certificates_that_run_out(authority: Authority, clock: Any) -> None:
    own, server = authority.folder / f"{PUBLISHER}.pem", authority.folder / SERVER_FILE
    before = own.read_bytes(), server.read_bytes()
    clock.wall_ms += 14 * DAY_MS
    assert not authority.refresh()
    clock.wall_ms += 2 * DAY_MS
    assert authority.refresh()
    assert own.read_bytes() != before[0] and server.read_bytes() == before[1]
    shown = x509.load_pem_x509_certificate(own.read_bytes())
    assert authority.is_own(certificates.fingerprint(shown))
    assert not authority.is_own(issue(authority).fingerprint)
    clock.wall_ms += 31 * DAY_MS
    assert authority.refresh() and server.read_bytes() != before[1]


def test_planned_rotation_that_cuts_devices_off(authority: Authority, clock: Any) -> None:
    old = issue(authority)
    anchors = authority.anchors
    authority.rotate(Line.DEVICE)
    new = issue(authority)
    assert old.issuer != new.issuer
    assert authority.believes(old.issuer) and authority.believes(new.issuer)
    clients = authority.folder / CLIENTS_FILE
    assert is_believed_by_file(old, clients, clock) and is_believed_by_file(new, clients, clock)
    assert authority.anchors == anchors
    with pytest.raises(Conflict) as refused:
        authority.rotate(Line.DEVICE)
    assert refused.value.code == "rotation_unfinished"
    again = opened(authority.folder, clock)
    assert again.believes(old.issuer) and issue(again).issuer == new.issuer


def test_authority_that_is_believed_after_its_time(authority: Authority, clock: Any) -> None:
    old = issue(authority)
    authority.rotate(Line.DEVICE)
    authority.finish(Line.DEVICE)
    new = issue(authority)
    assert not authority.believes(old.issuer) and authority.believes(new.issuer)
    assert not is_believed_by_file(old, authority.folder / CLIENTS_FILE, clock)
    # The door of devices still takes the connection: it may renew.
    assert is_believed_by_file(old, authority.folder / KNOWN_FILE, clock)
    assert not (authority.folder / "device-1.key").exists()
    with pytest.raises(Conflict) as refused:
        authority.finish(Line.DEVICE)
    assert refused.value.code == "no_rotation"
    again = opened(authority.folder, clock)
    assert not again.believes(old.issuer)


def test_stolen_authority_is_believed_during_an_overlap(authority: Authority, clock: Any) -> None:
    old = issue(authority)
    authority.rotate(Line.DEVICE, stolen=True)
    assert not authority.believes(old.issuer)
    assert not is_believed_by_file(old, authority.folder / CLIENTS_FILE, clock)
    assert not (authority.folder / "device-1.key").exists()


@pytest.mark.parametrize("stolen", [False, True])
def test_anchors_of_a_rotated_server_authority(
    authority: Authority, clock: Any, stolen: bool
) -> None:
    before = authorities(authority.folder / ANCHORS_FILE)
    authority.rotate(Line.SERVER, stolen=stolen)
    during = authorities(authority.folder / ANCHORS_FILE)
    assert len(during) == (1 if stolen else 2)
    assert (before[0] in during) is not stolen
    # Whoever knows the old anchors alone still knows the server, unless the old one was stolen.
    _shown(authority).verify_directly_issued_by(during[0] if stolen else before[0])
    if not stolen:
        authority.finish(Line.SERVER)
        after = authorities(authority.folder / ANCHORS_FILE)
        assert after == [during[0]]
        _shown(authority).verify_directly_issued_by(after[0])


def _shown(authority: Authority) -> x509.Certificate:
    return x509.load_pem_x509_certificate((authority.folder / SERVER_FILE).read_bytes())


def test_rotation_cut_off_before_it_is_written(
    authority: Authority, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = issue(authority)

    def full(_after: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(authority, "_take", full)
    with pytest.raises(OSError, match="No space"):
        authority.rotate(Line.DEVICE)
    monkeypatch.undo()
    assert issue(authority).issuer == old.issuer
    again = opened(authority.folder, clock)
    assert issue(again).issuer == old.issuer
    again.rotate(Line.DEVICE)
    assert issue(again).issuer != old.issuer


def test_revocation_list_that_lacks_an_authority(authority: Authority) -> None:
    old = issue(authority)
    authority.rotate(Line.DEVICE)
    new = issue(authority)
    authority.write_revocations({old.issuer: [old.serial], new.issuer: []})
    blocks = (authority.folder / REVOKED_FILE).read_bytes().split(b"-----END X509 CRL-----\n")
    lists = [
        x509.load_pem_x509_crl(block + b"-----END X509 CRL-----\n") for block in blocks if block
    ]
    assert len(lists) == 2
    found = {item.issuer: [entry.serial_number for entry in item] for item in lists}
    assert sorted(found.values(), key=len) == [[], [int(old.serial, 16)]]


def test_stand_in_that_leaves_its_key_behind(authority: Authority) -> None:
    context = authority.stand_in("dev-1")
    assert isinstance(context, ssl.SSLContext)
    assert not list(authority.folder.glob(".stand-in*"))
