"""How fast are instances received that are on disk before they are acknowledged, and does memory grow with them?

    python benchmarks/pacs.py --output pacs.md
    python benchmarks/pacs.py --parts memory

Speed: DCMTK's `storescu` sends MR instances of 512×512 at 16 bits over loopback, each with a new UID, to `accunet pacs
receive`, which answers when file, folder and row are on disk; to a bare pynetdicom server that writes the bytes it got
to a file and syncs nothing; and to Orthanc, if it is installed. One association at a time, then four at once. The
servers take turns, so that a busy moment of the machine hits all of them; medians are compared. How long the disk takes
to keep a new file of this size is printed with them, since a receiver that waits for it depends on that.

Memory: 20,000 instances of 64×64 in 800 series come by four associations at a time, 80 in all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import yaml
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage
from sqlalchemy import func, select

from accunet_monai.pacs.database import open_database, reading
from accunet_monai.pacs.pseudonyms import make_key
from accunet_monai.pacs.settings import read_site
from accunet_monai.pacs.tables import instances
from benchmarks.measuring.report import Report, describe_machine, ratio

OURS, BARE, BARE_LARGE, ORTHANC = (
    "accunet pacs receive",
    "bare pynetdicom",
    "bare pynetdicom, PDUs of 128 KiB",
    "Orthanc",
)
ASSOCIATIONS = (1, 4)
BARE_PDU, LARGE_PDU = 16382, 131072


def main() -> None:
    options = _read_options()
    if options.bare:
        serve_bare(*options.bare)
    report = Report(options.output)
    with tempfile.TemporaryDirectory(prefix="pacs-", dir=options.folder) as name:
        if "speed" in options.parts:
            speed(Path(name) / "speed", report, options)
        if "memory" in options.parts:
            memory(Path(name) / "memory", report, options)


def speed(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Instances a second of each server."""
    size, count = (64, 10) if options.quick else (512, options.instances)
    make_instances(folder / "sent", count, size)
    disk = subprocess.run(["df", "--output=fstype", folder], capture_output=True, text=True, check=True).stdout.split()
    report.paragraph(
        f"{describe_machine('cpu')} {count} instances of {size}×{size} an association, {options.repeats} runs in turn. "
        f"A new file of this size and its folder are on the disk ({disk[-1]}) in {sync_ms(folder, 2 * size**2):.1f} ms."
    )
    starts = {OURS: ours, BARE: bare(BARE_PDU), BARE_LARGE: bare(LARGE_PDU)}
    if shutil.which("Orthanc"):
        starts[ORTHANC] = orthanc
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(start, folder / str(number)))
            for number, (name, start) in enumerate(starts.items())
        }
        for server in servers.values():
            send(folder / "sent", server.port, 1)  # what is made at first use is made
        for associations in ASSOCIATIONS:
            rates = measure(folder / "sent", servers, associations, options.repeats)
            title = f"{associations} association{'s at once' if associations > 1 else ''}"
            columns = ("server", "instances/s", "range", "of bare pynetdicom", "ours against it")
            report.table(title, columns, compared(rates), "Only the first has every instance on disk when it answers.")
        check_all_kept(folder / "0", count * (1 + options.repeats * sum(ASSOCIATIONS)))


def memory(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Resident memory and threads of ours as instances come."""
    each, marks = (5, (20, 40)) if options.quick else (250, (1_000, 5_000, 10_000, 20_000))
    make_instances(folder / "sent", each, 64)
    rows, sent = [], 0
    with serving(ours, folder / "0") as server:
        for mark in marks:
            while sent < mark:
                send(folder / "sent", server.port, 4, "+IR", "25")
                sent += 4 * each
            resident, threads = server.memory_and_threads()
            rows.append((f"{sent:,}", f"{resident} MiB", str(threads)))
        check_all_kept(folder / "0", sent)
    report.table("Memory", ("instances received", "resident", "threads"), rows, "All of them are there.")


def sync_ms(folder: Path, size: int) -> float:
    """The median time to write a new file, and to have it and its folder on disk."""
    data, times = os.urandom(size), []
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for number in range(50):
        started = time.perf_counter()
        with (folder / f"probe-{number}").open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.fsync(handle)
        times.append(time.perf_counter() - started)
    os.close(handle)
    return 1000 * statistics.median(times)


def measure(sent: Path, servers: Mapping[str, Server], associations: int, repeats: int) -> dict[str, list[float]]:
    """Instances a second of each server, in turns."""
    rates: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(repeats):
        for name, server in servers.items():
            rates[name].append(send(sent, server.port, associations))
    return rates


def compared(rates: Mapping[str, Sequence[float]]) -> list[tuple[str, ...]]:
    """Rows of the table: medians, and their ratios to bare pynetdicom and to ours."""
    median = {name: statistics.median(values) for name, values in rates.items()}
    return [
        (
            name,
            f"{value:.0f}",
            f"{min(rates[name]):.0f}–{max(rates[name]):.0f}",
            ratio(value, median[BARE]),
            ratio(median[OURS], value),
        )
        for name, value in median.items()
    ]


def make_instances(folder: Path, count: int, size: int) -> None:
    """MR images of noise, which nothing compresses."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.826.0.1.3680043.8.498.1.{number}")
        ds.StudyInstanceUID, ds.SeriesInstanceUID = (
            UID("1.2.826.0.1.3680043.8.498.2"),
            UID("1.2.826.0.1.3680043.8.498.3"),
        )
        ds.PatientID, ds.PatientName, ds.Modality, ds.InstanceNumber = "1", "Noise^Made", "MR", number
        ds.StudyID, ds.SeriesNumber, ds.StudyDate = "1", 1, "20260101"
        ds.Rows = ds.Columns = size
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit = 15
        ds.PixelData = random.integers(0, 2**16, (size, size), dtype=np.uint16).tobytes()
        ds.save_as(folder / f"{number:05d}.dcm", enforce_file_format=True)


def send(folder: Path, port: int, associations: int, *options: str) -> float:
    """Instances a second, from the start of the senders to the end of the last."""
    command = ["storescu", "+II", *options, "-aec", "ACCUNET", "+sd", "127.0.0.1", str(port), str(folder)]
    started = time.perf_counter()
    senders = [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=_ENVIRONMENT) for _ in range(associations)]
    statuses = [sender.wait() for sender in senders]
    if any(statuses):
        raise RuntimeError(f"storescu failed on port {port}")
    return associations * len(list(folder.iterdir())) / (time.perf_counter() - started)


Start = Callable[[Path, int], list[str]]
_ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    port: int
    pid: int

    def memory_and_threads(self) -> tuple[int, int]:
        """MiB that are resident, and how many threads there are."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines()
        values = {name: value for name, _, value in (line.partition(":") for line in lines)}
        return int(values["VmRSS"].split()[0]) // 1024, int(values["Threads"])


@contextmanager
def serving(start: Start, folder: Path) -> Iterator[Server]:
    """Starts a server and waits until it answers."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    folder.mkdir()
    process = subprocess.Popen(
        start(folder, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_ENVIRONMENT
    )
    try:
        for _ in range(600):
            if (
                subprocess.run(
                    ["echoscu", "-aec", "ACCUNET", "127.0.0.1", str(port)], capture_output=True, check=False
                ).returncode
                == 0
            ):
                break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"no server on port {port}")
        yield Server(port, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def ours(folder: Path, port: int) -> list[str]:
    """`accunet pacs receive` with a site of its own."""
    make_key(folder / "site.key")
    peers = [{"ae_title": name, "addresses": ["127.0.0.1"]} for name in ("STORESCU", "ECHOSCU")]
    site = {"ae_title": "ACCUNET", "port": port, "storage": "state", "key_file": "site.key", "peers": peers}
    (folder / "site.yaml").write_text(yaml.safe_dump({**site, "limits": {"keep_free_bytes": 0}}), encoding="utf-8")
    return [sys.executable, "-m", "accunet_monai.cli", "pacs", "receive", str(folder / "site.yaml")]


def bare(pdu: int) -> Start:
    """The server of pynetdicom with the least that can be done."""
    return lambda folder, port: [sys.executable, __file__, "--bare", str(folder), str(port), str(pdu)]


def orthanc(folder: Path, port: int) -> list[str]:
    """Orthanc as installed, without HTTP."""
    names = {"StorageDirectory": str(folder), "IndexDirectory": str(folder), "DicomAet": "ACCUNET", "DicomPort": port}
    settings = names | {"HttpServerEnabled": False, "DicomAlwaysAllowStore": True, "DicomAlwaysAllowEcho": True}
    (folder / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
    return ["Orthanc", str(folder / "orthanc.json")]


def serve_bare(folder: str, port: str, pdu: str) -> None:
    """Never returns."""
    from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
    from pynetdicom.sop_class import Verification

    _config.LOG_HANDLER_LEVEL = "none"
    ae = AE("ACCUNET")
    ae.maximum_pdu_size = int(pdu)
    ae.add_supported_context(Verification)
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(str(context.abstract_syntax))

    def store(event: evt.Event) -> int:
        Path(folder, str(event.request.AffectedSOPInstanceUID)).write_bytes(event.encoded_dataset())
        return 0

    ae.start_server(("127.0.0.1", int(port)), evt_handlers=[(evt.EVT_C_STORE, store)])


def check_all_kept(folder: Path, sent: int) -> None:
    """Every instance that was sent to us is there."""
    site = read_site(folder / "site.yaml")
    with reading(open_database(site.database_url)) as connection:
        kept = connection.execute(select(func.count()).select_from(instances)).scalar_one()
    files = sum(1 for _ in (site.storage / "instances").rglob("*.dcm"))
    if not kept == files == sent:
        raise RuntimeError(f"{sent} instances sent, {kept} rows, {files} files")


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=["speed"], help="speed, memory or both")
    parser.add_argument("--instances", type=int, default=200, help="of each association and run (default 200)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default 5)")
    parser.add_argument("--folder", type=Path, help="on the disk that is meant; by default the temporary folder")
    parser.add_argument("--output", type=Path, help="Markdown file to write the tables to, too")
    parser.add_argument("--quick", action="store_true", help="small instances, two runs")
    parser.add_argument("--bare", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.repeats = 2
    return options


if __name__ == "__main__":
    main()
