"""What the processes of a live fleet say to each other: a task on standard input, lines of status
on standard output, one JSON document each.
"""

import msgspec


class DeviceTask(msgspec.Struct, frozen=True):
    """One device to run; ``token`` is empty if its folder is enrolled already."""

    name: str
    folder: str
    token: str


class ProcessTask(msgspec.Struct, frozen=True):
    """What one process of a live fleet does.

    ``images`` is an npz file with one array, named as the model's input and with the images on its
    first axis. ``rate`` is predictions a second on each device.
    """

    model: str
    devices: list[DeviceTask]
    rate: float
    images: str
    seed: int


class ProcessStatus(msgspec.Struct, frozen=True):
    """What a process says about its devices several times a second.

    ``active`` maps a device to the digest of the release that answers there, empty for none.
    ``without_model`` counts calls before a device's first release; they are no failures.
    ``failures`` has a few of the failed calls in words.
    """

    ready: bool
    active: dict[str, str]
    connected: int
    predictions: int
    failed_inferences: int
    without_model: int
    disabled: int
    failures: list[str]
    cpu_s: float
    threads: int
