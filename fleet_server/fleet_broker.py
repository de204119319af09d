"""The fleet's broker and authorities, as the settings and the data folder say.

Decides which files of the folder ``pki`` a broker gets, on which port it is found again after a
restart, and under which address devices see it. Who is let in is decided in :mod:`.gatekeeper`.
"""

import asyncio
from urllib.parse import urlsplit

from fleet_server import data_folder
from fleet_server.broker.choice import Broker, choose
from fleet_server.broker.errors import BrokerError
from fleet_server.broker.mosquitto_configuration import MosquittoSecurity
from fleet_server.broker.rules import SERVER_IDENTITIES, CertifiedPolicy, access_list
from fleet_server.clock import Clock
from fleet_server.dispatch.connection import BrokerAddress
from fleet_server.errors import StartError
from fleet_server.gatekeeper import Gatekeeper
from fleet_server.settings import Settings
from fleet_server.trust import durable
from fleet_server.trust.authority.authority import (
    CLIENTS_FILE,
    REVOKED_FILE,
    SERVER_FILE,
    Authority,
    open_authority,
)

OWN_BROKERS = frozenset({"auto", "embedded", "mosquitto"})
ACCESS_LIST_FILE = "access-list"


def open_own_authority(settings: Settings, clock: Clock) -> Authority:
    """Return the authorities in the data folder, and write down there who may say what.

    Raises:
        StartError: if they cannot be used.
    """
    folder = settings.data_dir / "pki"
    authority = open_authority(
        folder,
        fleet=settings.fleet,
        hosts=settings.hosts,
        identities=SERVER_IDENTITIES,
        # Before a server had authorities, devices had passwords, which no authority takes back.
        may_make=True,
        random_bytes=clock.random_bytes,
        now_ms=clock.now_ms,
    )
    durable.write_file(folder / ACCESS_LIST_FILE, access_list(settings.fleet).encode())
    return authority


def as_devices_see(url: str, settings: Settings) -> str:
    """Return the address of the broker for devices, who may not be on this machine."""
    parts = urlsplit(url)
    if settings.broker not in OWN_BROKERS:
        return url
    host = settings.device_host
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{parts.port}"


async def start_broker(
    settings: Settings, clock: Clock, authority: Authority, gatekeeper: Gatekeeper
) -> Broker:
    """Start the broker that the settings name, on the port that devices know.

    Raises:
        StartError: if it does not start.
    """
    pki = authority.folder
    port = settings.broker_port or data_folder.remembered_port(
        settings.data_dir, data_folder.BROKER
    )
    try:
        broker = choose(
            settings.broker,
            folder=settings.data_dir / "broker",
            clock=clock.monotonic_ms,
            host=settings.device_address,
            port=port,
            policy=CertifiedPolicy(settings.fleet, gatekeeper.is_believed),
            tls=authority.broker(),
            mosquitto=MosquittoSecurity(
                authorities=pki / CLIENTS_FILE,
                revoked=pki / REVOKED_FILE,
                certificate=pki / SERVER_FILE,
                key=pki / SERVER_FILE,
                access_list=pki / ACCESS_LIST_FILE,
            ),
        )
        await broker.start()
    except (BrokerError, OSError) as error:
        raise StartError(
            "no_broker",
            f"The broker does not start: {error}.",
            "If a broker of a server that was killed has the port, end it: devices keep the "
            "address. Else choose another port by --broker-port, or another broker by --broker: "
            "auto, embedded, mosquitto or mqtts://host:port.",
        ) from error
    address = BrokerAddress.parse(broker.url)
    if settings.broker in OWN_BROKERS and address.port != port:
        await asyncio.to_thread(
            data_folder.remember_port, settings.data_dir, address.port, data_folder.BROKER
        )
    return broker
