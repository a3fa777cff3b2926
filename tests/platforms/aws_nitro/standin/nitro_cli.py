"""A stand-in for nitro-cli: the same arguments, checks, error codes, exit statuses and JSON, from nitro-cli's source.

The shapes of its JSON are those of real output (`ephemeralml_enclave_describe.json` of the test vectors), read when it
runs. What it cannot be is the hypervisor: an "enclave" is a replica with SIMULATED evidence behind a unix socket.

STANDIN: its folder; STANDIN_ROOT: the machine's /sys and /dev; STANDIN_SHAPE: the file with real output.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from cloister.image import eif

STATE, ROOT = Path(os.environ["STANDIN"]), Path(os.environ["STANDIN_ROOT"])
SHAPE = json.loads(Path(os.environ["STANDIN_SHAPE"]).read_text())[0]
MIB = 1024 * 1024


class Failed(Exception):
    def __init__(self, code: str, says: str) -> None:
        super().__init__(code)
        self.code, self.says = code, says


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def pool() -> list[int]:
    try:
        text = (ROOT / "sys/module/nitro_enclaves/parameters/ne_cpus").read_text().strip()
    except OSError:
        raise Failed("E19", "File operation failure: the CPU pool cannot be opened.") from None
    found: list[int] = []
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def enclaves() -> list[dict]:
    """Those whose process lives; what the others held is given back."""
    alive = []
    for file in sorted(STATE.glob("*.json")):
        entry = json.loads(file.read_text())
        if Path(f"/proc/{entry['pid']}").exists():
            alive.append(entry)
        else:
            give_back(file, entry)
    return alive


def give_back(file: Path, entry: dict) -> None:
    for path, count in entry["pages"]:
        Path(path).write_text(f"{int(Path(path).read_text()) + count}\n")
    file.unlink()


def allocate(needed: int) -> tuple[int, list[tuple[str, int]]]:
    """Page by page, large ones first, then from the smallest; what is too much goes back (ResourceAllocator::allocate)."""
    files = {}
    for each in ROOT.glob("sys/devices/system/node/node0/hugepages/hugepages-*kB/free_hugepages"):
        files[int(each.parent.name[10:-2]) * 1024] = each
    free, taken = {size: int(each.read_text()) for size, each in files.items()}, []
    for size in sorted(free, reverse=True):
        while needed >= size and free[size]:
            free[size], needed = free[size] - 1, needed - size
            taken.append(size)
    for size in sorted(free):
        while needed > 0 and free[size]:
            free[size], needed = free[size] - 1, needed - size
            taken.append(size)
    if needed > 0:
        raise Failed("E27", "Insufficient memory available.")
    pages = [(str(files[size]), taken.count(size)) for size in set(taken)]
    for path, count in pages:
        Path(path).write_text(f"{int(Path(path).read_text()) - count}\n")
    return sum(taken) // MIB, pages


def run(options: argparse.Namespace) -> None:
    for name in ("memory", "eif_path", "cpu_count"):
        if getattr(options, name) is None:
            raise Failed("E01", "Missing mandatory argument.")
    if not all(str(text).isdecimal() for text in (options.memory, options.cpu_count, options.enclave_cid or "0")):
        raise Failed("E03", "Invalid argument provided.")
    memory, count = int(options.memory), int(options.cpu_count)
    existing, cpus = enclaves(), pool()
    if count > len(cpus):
        raise Failed("E22", "Insufficient CPUs available in the pool.")
    try:
        data = Path(options.eif_path).read_bytes()
    except OSError:
        raise Failed("E19", "File operation failure.") from None
    if 4 * len(data) > memory * MIB:
        raise Failed("E26", f"Insufficient memory requested. `memory` is {memory} MB.")
    if not (ROOT / "dev/nitro_enclaves").exists():
        raise Failed("E19", "File operation failure.")
    if len(existing) >= 4:
        raise Failed("E29", "Ioctl failure.")
    image = eif.parse(data)
    if image.certificate is not None and image.certificate.not_valid_after_utc < datetime.now(UTC):
        raise Failed("E59", "EIF signature checker error.")
    say("Start allocating memory...")
    allocated, pages = allocate(memory * MIB)
    free = [cpu for cpu in cpus if cpu not in {cpu for each in existing for cpu in each["CPUIDs"]}]
    cid = int(options.enclave_cid or 0) or next(
        n for n in range(16, 99) if n not in {e["EnclaveCID"] for e in existing}
    )
    entry = {**SHAPE, "pages": pages, "pid": 0}
    try:
        siblings = len((ROOT / "sys/devices/system/cpu/cpu0/topology/thread_siblings_list").read_text().split(","))
        if count > len(free) or count % siblings or cid < 4 or cid in {each["EnclaveCID"] for each in existing}:
            raise Failed("E29", "Ioctl failure.")
        name, index = options.enclave_name or Path(options.eif_path).name.removesuffix(".eif"), 0
        while (chosen := f"{name}_{index}" if index else name) in {each["EnclaveName"] for each in existing}:
            index += 1
        identifier = f"i-0a3f4c55bdbcc7ca8-enc{time.time_ns():x}"
        say(f"Started enclave with enclave-cid: {cid}, memory: {allocated} MiB, cpu-ids: {free[:count]}")
        with (STATE / f"{cid}.console").open("wb") as console:
            enclave = subprocess.Popen(
                [sys.executable, __file__, "--enclave", str(cid)], stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                start_new_session=True,
            )  # fmt: skip
        limit = time.monotonic() + 60
        while not (STATE / f"vsock_{cid}").exists():
            if enclave.poll() is not None or time.monotonic() > limit:
                raise Failed("E36", "Enclave boot failure.")
            time.sleep(0.05)
    except Failed:
        file = STATE / "failed.json"
        file.write_text("")
        give_back(file, entry)
        raise
    entry |= {
        "EnclaveName": chosen, "EnclaveID": identifier, "ProcessID": enclave.pid, "EnclaveCID": cid, "NumberOfCPUs": count,
        "CPUIDs": free[:count], "MemoryMiB": allocated, "State": "RUNNING",
        "Flags": "DEBUG_MODE" if options.debug_mode else "NONE", "pid": enclave.pid,
        "Measurements": {
            "HashAlgorithm": SHAPE["Measurements"]["HashAlgorithm"],
            **{f"PCR{index}": value.hex() for index, value in image.measurements().items()},
        },
    }  # fmt: skip
    (STATE / f"{identifier}.json").write_text(json.dumps(entry))
    show({name: entry[name] for name in SHAPE if name not in ("State", "Flags", "Measurements")})


def show(value: object) -> None:
    print(json.dumps(value, indent=2))


def named(options: argparse.Namespace) -> dict:
    for entry in enclaves():
        if options.enclave_id == entry["EnclaveID"]:
            return entry
    raise Failed("E11", "Socket error.")


def console(options: argparse.Namespace) -> None:
    entry = named(options)
    if entry["Flags"] != "DEBUG_MODE":
        raise Failed("E44", "Enclave console connection failure.")
    print(f"Connecting to the console for enclave {entry['EnclaveCID']}...")
    print("Successfully connected to the console.")
    print((STATE / f"{entry['EnclaveCID']}.console").read_text("utf-8", "replace"), end="", flush=True)
    # A console does not end by itself.
    time.sleep(float(options.disconnect_timeout or 3600))


def terminate(options: argparse.Namespace) -> None:
    entry = named(options)
    os.killpg(entry["pid"], signal.SIGKILL)
    (STATE / f"vsock_{entry['EnclaveCID']}").unlink()
    give_back(STATE / f"{entry['EnclaveID']}.json", entry)
    say(f"Successfully terminated enclave {entry['EnclaveID']}.")
    show({"EnclaveName": entry["EnclaveName"], "EnclaveID": entry["EnclaveID"], "Terminated": True})


async def enclave(cid: int) -> None:
    """A replica of its own, and the way to it: `CONNECT port`, `OK n`, then the stream."""
    words = [sys.executable, "-m", "cloister", "serve", "--listen", "127.0.0.1:0", "--json"]
    replica = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    assert replica.stdout is not None
    port = int(json.loads(await replica.stdout.readline())["url"].rpartition(":")[2])
    print("cloister: serving", flush=True)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"CONNECT 5000\n"
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"OK 1073741824\n")

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()
                target.write_eof()

        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
        writer.close()

    server = await asyncio.start_unix_server(serve, STATE / f"vsock_{cid}")
    async with server:
        await replica.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="nitro-cli", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    starts = commands.add_parser("run-enclave", allow_abbrev=False)
    for name in ("eif-path", "memory", "cpu-count", "enclave-cid", "enclave-name"):
        starts.add_argument(f"--{name}")
    starts.add_argument("--debug-mode", action="store_true")
    commands.add_parser("describe-enclaves", allow_abbrev=False)
    shows = commands.add_parser("console", allow_abbrev=False)
    shows.add_argument("--enclave-id", required=True)
    shows.add_argument("--disconnect-timeout")
    ends = commands.add_parser("terminate-enclave", allow_abbrev=False)
    ends.add_argument("--enclave-id", required=True)
    options = parser.parse_args()
    try:
        match options.command:
            case "run-enclave":
                run(options)
            case "describe-enclaves":
                show([{name: entry[name] for name in SHAPE} for entry in enclaves()])
            case "console":
                console(options)
            case "terminate-enclave":
                terminate(options)
    except Failed as failed:
        say(f"[ {failed.code} ] {failed.says}\n\nFor more details, see AWS's page of errors, {failed.code}")
        return int(failed.code[1:])
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--enclave":
        asyncio.run(enclave(int(sys.argv[2])))
    else:
        sys.exit(main())
