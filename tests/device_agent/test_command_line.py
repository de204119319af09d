"""The command line says what is wrong and what to do, and its exit status says whether it is."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.command_line import main
from device_agent.shell.certificate import PAIR_FILE
from device_agent.shell.tls import ANCHORS_FILE
from tests.device_agent.shell.toy_authority import LIFE, Issuer
from tests.device_agent.shell.toy_fleet import DEVICE, ToyFleet


@pytest.fixture
def web() -> Iterator[ToyFleet]:
    fleet = ToyFleet(with_broker=False)
    yield fleet
    fleet.close()


@pytest.fixture
def enrolled(web: ToyFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "device"
    assert main(["enroll", web.token(), "--name", DEVICE, "--folder", str(folder)]) == 0
    assert "next: device-agent run" in capsys.readouterr().out
    return folder


def findings(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, bool]:
    main(["doctor", "--folder", str(folder), "--json"])
    return {item["subject"]: item["well"] for item in json.loads(capsys.readouterr().out)}


def test_device_that_is_not_enrolled_is_told_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("run", "status"):
        assert main([command, "--folder", str(tmp_path)]) == 1
        assert "device-agent enroll" in capsys.readouterr().err
    assert main(["doctor", "--folder", str(tmp_path)]) == 1
    assert "do: run: device-agent enroll" in capsys.readouterr().out


def test_wrong_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["enroll", "nonsense", "--name", "ab", "--folder", str(tmp_path)]) == 1
    assert "copy it whole" in capsys.readouterr().err


def test_folder_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["status", "--folder", str(tmp_path / "file")]) == 1
    assert "--folder" in capsys.readouterr().err


def test_status_of_a_new_device(enrolled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--folder", str(enrolled)]) == 0
    assert f"{DEVICE} of fleet home" in capsys.readouterr().out
    assert main(["status", "--folder", str(enrolled), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"fleet": "home", "device": DEVICE, "models": {}}


def test_doctor_finds_only_the_broker_that_is_not_there(
    enrolled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = findings(enrolled, capsys)
    assert [subject for subject, well in found.items() if not well] == ["broker"]
    assert {"disk", "runtime", "identity", "key", "root", "record", "server", "clock"} <= set(found)


def test_doctor_finds_a_key_that_others_can_read(
    enrolled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = enrolled / PAIR_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert not findings(enrolled, capsys)["key"]


def test_doctor_finds_a_lost_record(enrolled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (enrolled / "record").write_bytes(b"x")
    assert not findings(enrolled, capsys)["record"]


def test_doctor_finds_another_server_at_the_address(
    enrolled: Path, web: ToyFleet, capsys: pytest.CaptureFixture[str]
) -> None:
    web.catalogue = web.new_catalogue("other")
    assert not findings(enrolled, capsys)["server"]


def test_origin_of_downloads_that_is_none(
    enrolled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["run", "--folder", str(enrolled)]
    assert main([*run, "--download-origin", "https://a", "--download-origin", "http://b"]) == 1
    assert "use https" in capsys.readouterr().err
    monkeypatch.setenv("DEVICE_AGENT_DOWNLOAD_ORIGINS", "https://a https://b/models")
    assert main(run) == 1
    assert "https://b/models" in capsys.readouterr().err


def test_second_enrolment_that_ends_a_running_device(
    web: ToyFleet, enrolled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (enrolled / PAIR_FILE).read_bytes()
    again = ["enroll", web.token(), "--name", DEVICE, "--folder", str(enrolled)]
    assert main(again) == 1
    assert "--replace" in capsys.readouterr().err
    assert (enrolled / PAIR_FILE).read_bytes() == before
    assert main([*again, "--replace"]) == 0


@pytest.fixture
def secure_web() -> Iterator[ToyFleet]:
    fleet = ToyFleet(secure=True)
    yield fleet
    fleet.close()


@pytest.fixture
def secure(secure_web: ToyFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "secure"
    assert main(["enroll", secure_web.token(), "--name", DEVICE, "--folder", str(folder)]) == 0
    capsys.readouterr()
    return folder


def bad(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [subject for subject, well in findings(folder, capsys).items() if not well]


def test_doctor_finds_nothing_on_a_device_that_is_well(
    secure: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bad(secure, capsys) == []
    assert "anchors" in findings(secure, capsys)


def test_doctor_finds_a_key_that_is_of_no_use(
    secure: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (secure / PAIR_FILE).write_bytes(b"damaged")
    assert bad(secure, capsys) == ["key", "anchors", "server", "broker"]


def test_doctor_finds_lost_anchors(secure: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (secure / ANCHORS_FILE).unlink()
    assert bad(secure, capsys) == ["anchors", "server", "broker"]


def test_doctor_finds_a_certificate_that_expired(
    secure: Path, secure_web: ToyFleet, capsys: pytest.CaptureFixture[str]
) -> None:
    secure_web.authority.ago = LIFE * 2
    again = ["enroll", secure_web.token(), "--name", DEVICE, "--folder", str(secure), "--replace"]
    assert main(again) == 0
    capsys.readouterr()
    assert "key" in bad(secure, capsys)


def test_doctor_finds_a_server_that_nobody_vouches_for(
    secure: Path, secure_web: ToyFleet, capsys: pytest.CaptureFixture[str]
) -> None:
    secure_web.authority.serve_as(issuer=Issuer("others"))
    assert bad(secure, capsys) == ["server", "broker"]
    main(["doctor", "--folder", str(secure)])
    assert "new anchors" in capsys.readouterr().out
