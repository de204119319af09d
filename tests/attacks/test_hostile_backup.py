"""A backup that somebody altered: whatever it holds, nothing of it is written anywhere.

Backups lie for years on disks of others. Sums in the same file keep nobody from writing another
file; they find damage. What is refused here is what a file could do to the machine that reads it.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_contract import codec
from fleet_server.backup import archive, contents, restoring
from fleet_server.backup.contents import Description
from fleet_server.backup.dump import TableShape
from fleet_server.backup.making import make_backup
from fleet_server.clock import SystemClock
from fleet_server.database import Database
from fleet_server.errors import DomainError, Invalid
from fleet_server.trust.catalogue.opening import open_catalogue
from fleet_server.trust.keyring import open_keyring

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of a small data folder."""
    folder, clock = tmp_path_factory.mktemp("server"), SystemClock()
    open_catalogue(
        folder / "trust", may_make=True, random_bytes=clock.random_bytes, now_ms=clock.now_ms
    )
    open_keyring(folder / "keys", fleet="home", random_bytes=clock.random_bytes)
    with closing(Database(f"sqlite:///{folder / 'fleet.sqlite'}")) as database:
        database.migrate()
        make_backup(folder / "backup.tar", folder, database, now_ms=clock.now_ms())
    return folder / "backup.tar"


def members_of(path: Path) -> Members:
    with path.open("rb") as file:
        return {
            member.name: b"".join(member.chunks)
            for member in archive.members(file)
            if member.name != archive.SUMS
        }


def written(members: Members, *, more: Callable[[tarfile.TarFile], None] | None = None) -> bytes:
    """An archive of these members with right sums, and of whatever else ``more`` adds."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        sums = ""
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            sums += f"{hashlib.sha256(data).hexdigest()}  {name}\n"
        if more is not None:
            more(tar)
        info = tarfile.TarInfo(archive.SUMS)
        info.size = len(sums)
        tar.addfile(info, io.BytesIO(sums.encode()))
    return buffer.getvalue()


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[bytes], str]:
    """Restore these bytes and return why they were refused; nothing may have been written."""

    def check(data: bytes) -> str:
        room = tmp_path / "room"
        room.mkdir()
        source = tmp_path / "hostile.tar"
        source.write_bytes(data)
        with pytest.raises(DomainError) as error:
            restoring.restore(source, room / "restored", "", now_ms=1)
        assert not (room / "restored").exists()
        assert error.value.advice
        return str(error.value)

    return check


def test_the_genuine_one_is_whole(genuine: Path, tmp_path: Path) -> None:
    (tmp_path / "again.tar").write_bytes(written(members_of(genuine)))
    restoring.restore(tmp_path / "again.tar", tmp_path / "restored", "", now_ms=1)
    assert (tmp_path / "restored" / "keys" / "director.key").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/cron.d/outside",
        "files/keys/../../outside",
        "files/keys/./outside",
        "files/keys//outside",
        "files/keys/.outside",
        "files/keys/",
        "files/fleet.sqlite",
        "files/lock",
        "files/elsewhere/x",
        "files/keys/a\\b",
        "files/keys/~",
        "files/keys/a b",
        "files/restored",
        "elsewhere",
        "database/cohort/../../files/keys/x",
        "database/no_such_table/000000.jsonl",
        "database/cohort/0.jsonl",
    ],
)
def test_name_that_leads_elsewhere(
    genuine: Path, refused: Callable[[bytes], str], name: str
) -> None:
    assert "is no" in refused(written({**members_of(genuine), name: b"x"}))


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_SPARSE,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.AREGTYPE,
    ],
)
def test_member_that_is_no_file(
    genuine: Path, refused: Callable[[bytes], str], kind: bytes
) -> None:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo("files/keys/more")
        info.type = kind
        info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
        tar.fileobj.write(info.tobuf(tarfile.USTAR_FORMAT))
        tar.offset += tarfile.BLOCKSIZE

    assert "not a plain file" in refused(written(members_of(genuine), more=add))


def test_member_twice(genuine: Path, refused: Callable[[bytes], str]) -> None:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo("files/keys/director.key")
        tar.addfile(info, io.BytesIO())

    assert "there twice" in refused(written(members_of(genuine), more=add))


@pytest.mark.parametrize("size_bytes", [2**31 + 1, 8 * 2**30 - 1])
def test_member_that_says_it_is_endless(
    genuine: Path, refused: Callable[[bytes], str], size_bytes: int
) -> None:
    info = tarfile.TarInfo("files/store/artifacts/digits/" + "a" * 64)
    info.size = size_bytes
    data = info.tobuf(tarfile.USTAR_FORMAT)
    assert "bytes" in refused(data)


def test_damaged_byte(genuine: Path, refused: Callable[[bytes], str]) -> None:
    data = bytearray(genuine.read_bytes())
    at = data.index(b"files/keys/director.key") + archive.BLOCK
    data[at] ^= 1
    assert "files/keys/director.key is damaged or missing" in refused(bytes(data))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.95])
def test_truncated(genuine: Path, refused: Callable[[bytes], str], share: float) -> None:
    data = genuine.read_bytes()
    assert "ends too early" in refused(data[: int(len(data) * share)])


def test_member_taken_out(genuine: Path, refused: Callable[[bytes], str]) -> None:
    data = genuine.read_bytes()
    at = data.index(b"files/keys/director.key")
    # Its head and its one block of content.
    shorter = data[:at] + data[at + 2 * archive.BLOCK :]
    assert "files/keys/director.key is damaged or missing" in refused(shorter)


def test_rows_that_are_no_rows(genuine: Path, refused: Callable[[bytes], str]) -> None:
    members = members_of(genuine)
    description = codec.decode_json(
        members[contents.DESCRIPTION], Description, limit_bytes=contents.DESCRIPTION_BYTES
    )
    assert description.tables
    for line in (b"{}\n", b"[1]\n", b"[" * 100_000, b"\xff\n"):
        with pytest.raises(Invalid):
            _restore_with(members | {"database/cohort/000000.jsonl": line}, genuine.parent)


def test_rows_left_out(genuine: Path, refused: Callable[[bytes], str]) -> None:
    members = members_of(genuine)
    description = codec.decode_json(
        members[contents.DESCRIPTION], Description, limit_bytes=contents.DESCRIPTION_BYTES
    )
    tables = [
        TableShape(shape.name, shape.columns, shape.rows + (shape.name == "cohort"))
        for shape in description.tables
    ]
    members[contents.DESCRIPTION] = codec.encode_json(
        Description(1, "home", "0.1.0", description.revision, 1, True, tables)
    )
    assert "cohort has 0 rows instead of 1" in refused(written(members))


@pytest.mark.parametrize("revision", ["head", "base", "+1", "../x", "0002; DROP TABLE x"])
def test_revision_that_is_a_command(
    genuine: Path, refused: Callable[[bytes], str], revision: str
) -> None:
    members = members_of(genuine)
    plain = members[contents.DESCRIPTION]
    start = plain.index(b'"revision":"') + len(b'"revision":"')
    members[contents.DESCRIPTION] = plain[:start] + revision.encode() + plain[start + 4 :]
    assert "cannot be read" in refused(written(members))


@given(data=st.binary(max_size=2_000))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Invalid):
        restoring.check_backup(io.BytesIO(data))


@given(at=st.integers(0, 10**9), byte=st.integers(1, 255))
def test_any_changed_byte_is_found_or_harmless(genuine: Path, at: int, byte: int) -> None:
    data = bytearray(genuine.read_bytes())
    data[at % len(data)] ^= byte
    try:
        _, sums = restoring.check_backup(io.BytesIO(bytes(data)))
    except Invalid:
        return
    # Times and owners of members, and what fills blocks up, are read by nobody.
    with genuine.open("rb") as file:
        assert sums == restoring.check_backup(file)[1]


def _restore_with(members: Members, folder: Path) -> None:
    source = folder / "rows.tar"
    source.write_bytes(written(members))
    restoring.restore(source, folder / "rows", "", now_ms=1)
