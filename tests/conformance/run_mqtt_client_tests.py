"""Eclipse's MQTT 5 client tests against both brokers, one by one, each with a time limit.

    python tests/conformance/run_mqtt_client_tests.py <checkout of eclipse/paho.mqtt.testing>

The suite is fetched beside the project (github eclipse/paho.mqtt.testing, ``git clone``), never
into it. Prints one line per test and ends with 1 where the embedded broker fails a test that
applies to it and that Mosquitto passes. docs/reference/embedded-broker.md holds the table.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from pathlib import Path

from fleet_server.broker.choice import Broker, choose
from fleet_server.clock import SystemClock

# Why a test does not apply to the embedded broker.
NOT_APPLICABLE = {
    "test_offline_message_queueing": "keeps no session for offline clients",
    "test_publication_expiry": "keeps no session for offline clients",
    "test_redelivery_on_reconnect": "keeps no session for offline clients",
    "test_session_expiry": "keeps no session for offline clients",
    "test_will_delay": "the session ends with the connection, and a will delay with it",
    "test_server_topic_alias": "sends no topic aliases, which 3.3.2.3.4 leaves to the server",
    "test_subscribe_failure": "wants a server configured to refuse test/nosubscribe",
}
_URL_PORT = re.compile(r":(\d+)$")


def test_names(suite: Path) -> list[str]:
    """The tests of the suite, in its order."""
    return re.findall(r"^    def (test_\w+)\(self\)", suite.read_text(), re.MULTILINE)


async def run_test(suite: Path, name: str, port: int, limit_s: float) -> str:
    """``pass``, ``fail`` or ``timeout``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, suite.name, "--port", str(port), f"Test.{name}",
        cwd=suite.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(limit_s):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return "timeout"
    # Some tests catch their own failure and only print its traceback.
    failed = process.returncode != 0 or b"Traceback" in output.split(b"clean up finished")[-1]
    return "fail" if failed else "pass"


async def run_against(broker: Broker, suite: Path, names: list[str], limit_s: float) -> list[str]:
    """One result per name, against one broker that runs for all of them."""
    await broker.start()
    try:
        found = _URL_PORT.search(broker.url)
        assert found is not None
        return [await run_test(suite, name, int(found[1]), limit_s) for name in names]
    finally:
        await broker.stop()


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", help="run one test")
    parser.add_argument("--brokers", nargs="+", default=["embedded", "mosquitto"])
    parser.add_argument("--limit-s", type=float, default=60.0, help="per test")
    arguments = parser.parse_args()
    suite = arguments.checkout.resolve() / "interoperability" / "client_test5.py"
    names = [arguments.only] if arguments.only else test_names(suite)
    with tempfile.TemporaryDirectory() as folder:
        brokers = [
            choose(spec, folder=Path(folder), clock=SystemClock().monotonic_ms)
            for spec in arguments.brokers
        ]
        columns = await asyncio.gather(
            *(run_against(broker, suite, names, arguments.limit_s) for broker in brokers)
        )
    bad = []
    print(f"| {'test':34} | {' | '.join(f'{spec:9}' for spec in arguments.brokers)} | applies |")
    for name, *results in zip(names, *columns, strict=True):
        outcome = dict(zip(arguments.brokers, results, strict=True))
        reason = NOT_APPLICABLE.get(name)
        cells = " | ".join(f"{result:9}" for result in results)
        print(f"| {name:34} | {cells} | {'yes' if reason is None else 'no: ' + reason} |")
        if reason is None and outcome.get("embedded") != "pass":
            bad.append(name)
    regressions = [name for name in bad if _passes_elsewhere(name, names, columns, arguments)]
    if regressions:
        print("the embedded broker fails what it claims to support:", ", ".join(regressions))
    return 1 if regressions else 0


def _passes_elsewhere(
    name: str, names: list[str], columns: list[list[str]], arguments: argparse.Namespace
) -> bool:
    """Whether Mosquitto passes it; without a Mosquitto in the run, every failure counts."""
    if "embedded" not in arguments.brokers:
        return False
    if "mosquitto" not in arguments.brokers:
        return True
    return columns[arguments.brokers.index("mosquitto")][names.index(name)] == "pass"


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
