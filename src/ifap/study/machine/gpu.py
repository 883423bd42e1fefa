"""One GPU a process, by file lock; needs no torch, because a device must be chosen before CUDA looks for one.

Snakemake only counts GPUs: two jobs with ``gpu=1`` on two devices would both use the first. Here a
process takes the lock of one device among those that it may see and makes it the only visible one.
The kernel frees the lock when the process ends, however it ends, so there is no daemon and nothing to
clean up. Where a scheduler has assigned one device, there is nothing to choose; where it has assigned
several, its job's processes share them out in the same way.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from ifap.errors import ConfigError
from ifap.study.machine.lock import holder, lock

log = logging.getLogger(__name__)

WANTED = "IFAP_GPU"
"""How many GPUs the workflow gives a job: 1 or more leases one, 0 hides all, unset changes nothing."""
SUBMITTED = "IFAP_GPU_SUBMITTED"
"""Set by the workflow in a job that Snakemake submitted: it uses what Slurm gave it, by whatever resource it asked."""
SLOTS = "IFAP_GPU_SLOTS"
"""How many processes may share one device; 1 if unset."""
FOLDER = "IFAP_GPU_LOCKS"
"""Folder of the lock files; one for each user in the temporary folder if unset."""
VISIBLE = "CUDA_VISIBLE_DEVICES"

POLL_SECONDS = 0.1
LIST_SECONDS = 30  # a driver that does not answer by then is as good as none
PRIVATE = 0o700

_GPU = re.compile(r"GPU (?P<index>\d+): (?P<title>.*) \(UUID: (?P<uuid>GPU-[\w-]+)\)")
_PART = re.compile(r"\s+MIG (?P<title>\S+)\s+Device\s+\d+: \(UUID: (?P<uuid>MIG-[\w/-]+)\)")


@dataclass(frozen=True)
class Device:
    """A GPU, or a part of one."""

    name: str  # What ``CUDA_VISIBLE_DEVICES`` calls it: an index, a UUID or a MIG name.
    uuid: str  # Its UUID where the driver tells, else the name: two names of one device have one lock.
    title: str = ""  # The model in words, empty if not known.

    def __str__(self) -> str:
        return f"{self.name} ({self.title})" if self.title else self.name


@dataclass(frozen=True)
class Lease:
    """A device that this process holds until it ends."""

    device: Device
    lock: Path | None = None  # The lock file; None for a device that a scheduler assigned to this process alone.
    waited: float = 0.0  # Seconds until it was free.


@dataclass(frozen=True)
class Holder:
    """A lease of another process."""

    device: Device
    slot: int  # Which of its slots, from 0.
    process: str  # Process id as its holder wrote it.


def driver_devices() -> list[Device]:
    """Return the devices that ``nvidia-smi`` lists, a GPU's parts in place of the GPU; none without a driver."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=LIST_SECONDS, check=True)
    except FileNotFoundError:
        # A container may bring CUDA without this program. Its device files keep the host's numbers, CUDA counts from 0.
        files = [path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()]
        return [Device(str(number), str(number)) for number in range(len(files))]
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("nvidia-smi lists no GPUs: %s", error)
        return []
    return parse_devices(done.stdout)


def parse_devices(listed: str) -> list[Device]:
    """Read what ``nvidia-smi -L`` prints.

    A GPU is named by its index in PCI order, a part of one by its UUID.
    """
    found: list[Device] = []
    whole: Device | None = None
    for line in listed.splitlines():
        if match := _GPU.match(line):
            whole = Device(match["index"], match["uuid"], match["title"])
            found.append(whole)
        elif (match := _PART.match(line)) and whole is not None:
            if found[-1] == whole:
                found.pop()  # a divided GPU cannot be used as a whole
            found.append(Device(match["uuid"], match["uuid"], f"{whole.title} {match['title']}"))
    return found


def visible_devices(environ: Mapping[str, str] = os.environ) -> list[Device]:
    """Return the devices that a process may use, in order, each once.

    ``CUDA_VISIBLE_DEVICES`` is read as CUDA does: what follows an entry that is no device is ignored, and an empty
    value hides all.
    """
    driver = driver_devices()
    if VISIBLE not in environ:
        # UUIDs do not depend on CUDA's own order of devices, which is not that of the driver.
        return [Device(device.uuid, device.uuid, device.title) for device in driver]
    devices: list[Device] = []
    for name in environ[VISIBLE].split(","):
        device = _named(name.strip(), driver)
        if device is None:
            break
        if device.uuid not in {other.uuid for other in devices}:
            devices.append(device)
    return devices


def _named(name: str, driver: list[Device]) -> Device | None:
    """Return the device of one entry of ``CUDA_VISIBLE_DEVICES``; UUIDs may be cut short, as CUDA allows."""
    if name.isdigit():
        known = next((device for device in driver if device.name == name), None)
    elif name.startswith(("GPU-", "MIG-")):
        alike = [device for device in driver if device.uuid.startswith(name)]
        known = alike[0] if len(alike) == 1 else None
    else:
        return None
    return Device(name, known.uuid if known else name, known.title if known else "")


def scheduler(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return what has assigned this process its devices: ``Slurm``, ``Kubernetes`` or None."""
    if "SLURM_JOB_ID" in environ:
        return "Slurm"
    return "Kubernetes" if "KUBERNETES_SERVICE_HOST" in environ else None


def owns_none(environ: Mapping[str, str] = os.environ) -> bool:
    """Say whether this is a Slurm job that asked for no GPU: it may see all of them, but none is its own."""
    owned = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE")
    return scheduler(environ) == "Slurm" and not any(environ.get(name) for name in owned)


def slots(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many processes may share one device; a ConfigError if ``IFAP_GPU_SLOTS`` is no positive number."""
    return _number(environ, SLOTS, 1) or 1


def lock_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the lock files, made if it is not there.

    Raises a ConfigError if somebody else made it: then its locks say nothing.
    """
    folder = Path(environ.get(FOLDER) or Path(tempfile.gettempdir()) / f"ifap-gpu-{os.getuid()}")
    try:
        folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise ConfigError(f"lock folder {folder}: {error.strerror}: set {FOLDER} to a folder of yours") from None
    if owner != os.getuid():
        raise ConfigError(f"lock folder {folder} belongs to another user: set {FOLDER} to a folder of yours")
    return folder


def take(environ: MutableMapping[str, str] = os.environ) -> Lease | None:
    """Take one of the visible devices for this process and hide the others; waits while all are taken.

    None without any device: then everything runs on the CPU. A single device that a scheduler assigned is left as it
    is, with no lock. Raises a ConfigError if ``IFAP_GPU_SLOTS`` or the lock folder cannot be used.
    """
    if owns_none(environ):
        environ[VISIBLE] = ""
        return None
    devices = visible_devices(environ)
    if not devices:
        return None
    if scheduler(environ) and len(devices) == 1:
        return Lease(devices[0])
    files = _files(devices, environ)
    start, said = time.monotonic(), False
    while True:
        for path, device, _ in files:
            if (descriptor := lock(path)) is not None:
                _held.append(descriptor)
                environ[VISIBLE] = device.name
                return Lease(device, path, time.monotonic() - start)
        if not said:
            log.info("all %d GPUs are taken: waiting", len(devices))
            said = True
        time.sleep(POLL_SECONDS)


def holders(devices: list[Device], environ: Mapping[str, str] = os.environ) -> Iterator[Holder]:
    """Say which processes hold which devices; a lease that is being taken at this moment just tries again."""
    for path, device, slot in _files(devices, environ):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield Holder(device, slot, holder(path))
        finally:
            os.close(descriptor)


def _files(devices: list[Device], environ: Mapping[str, str]) -> list[tuple[Path, Device, int]]:
    """Return every lock file in the order of trying: an empty device comes before a second process on one."""
    folder = lock_folder(environ)
    # Slurm may number the devices of each job from 0.
    scope = environ.get("SLURM_JOB_ID", "local")
    return [
        (folder / f"{scope}-{re.sub(r'[^A-Za-z0-9-]', '_', device.uuid)}-{slot}", device, slot)
        for slot in range(slots(environ))
        for device in devices
    ]


def _let_go() -> None:
    """Close the locks in a forked child: a loader's worker that outlives this process must not keep its device."""
    while _held:
        os.close(_held.pop())


_held: list[int] = []
os.register_at_fork(after_in_child=_let_go)


def take_as_asked(environ: MutableMapping[str, str] = os.environ) -> None:
    """Do what the workflow asked for through ``IFAP_GPU``, once: children of this process inherit its device.

    Raises a ConfigError if ``IFAP_GPU`` is no number, or where `take` does.
    """
    wanted = _number(environ, WANTED, None)
    environ.pop(WANTED, None)
    if wanted == 0 and environ.get(SUBMITTED) and scheduler(environ) == "Slurm":
        wanted = 1  # `gres` may have asked in place of `gpu`; where nothing did, Slurm gave nothing
    if wanted is None or int(environ.get("WORLD_SIZE") or 1) > 1:
        return  # by hand, or a launcher of several processes has shared the devices out
    if wanted == 0:
        environ[VISIBLE] = ""
        return
    lease = take(environ)
    if lease is None:
        return  # the log says so where the device is chosen
    origin = f"assigned by {scheduler(environ)}" if lease.lock is None else f"waited {lease.waited:.1f} s"
    log.info("GPU %s: %s", lease.device, origin)


def _number(environ: Mapping[str, str], name: str, default: int | None) -> int | None:
    value = environ.get(name, "").strip()
    if not value:
        return default
    least = 1 if name == SLOTS else 0
    if not value.isdigit() or int(value) < least:
        raise ConfigError(f"{name} must be a whole number from {least}, not '{value}'")
    return int(value)
