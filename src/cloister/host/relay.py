"""A blind relay: carries bytes between clients and one replica and understands none of them.

It stands for everything untrusted on the way (load balancer, parent instance, cloud network). With `--capture DIR` it
keeps both directions of every connection in files, which shows what an observer there can see.

    python -m cloister.host.relay --listen 127.0.0.1:8443 --to 127.0.0.1:8080 [--capture DIR]

The first line on standard output is `listening HOST PORT`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from cloister.errors import UsageError

#: Bytes asked of a socket at a time.
CHUNK = 64 * 1024
CONNECT_TIMEOUT = 10.0


@dataclass(frozen=True)
class Address:
    """A TCP address."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """`HOST:PORT` or `[V6]:PORT`; raises UsageError."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) > 65535:
            raise UsageError("an address is HOST:PORT", hint="For example 127.0.0.1:8080 or [::1]:8080.")
        return cls(host.strip("[]"), int(port))


@dataclass
class Totals:
    """What went through, in bytes and connections; all that the relay can say about its traffic."""

    connections: int = 0
    up: int = 0
    down: int = 0
    open: set[asyncio.Task[None]] = field(default_factory=set)


class Relay:
    """Forwards every connection on `listen` to `target`; `start`, then `aclose`."""

    def __init__(self, listen: Address, target: Address, *, capture: Path | None = None) -> None:
        self._listen = listen
        self._target = target
        self._capture = capture
        self._server: asyncio.Server | None = None
        self.totals = Totals()

    async def start(self) -> Address:
        """Open the listener and return the address it really has (port 0 asks for a free one)."""
        if self._capture is not None:
            self._capture.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._server = await asyncio.start_server(self._serve, self._listen.host, self._listen.port)
        host, port = self._server.sockets[0].getsockname()[:2]
        return Address(host, port)

    async def aclose(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is not None:
            self._server.close()
        for task in list(self.totals.open):
            task.cancel()
        await asyncio.gather(*self.totals.open, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.totals.open.add(task)
        self.totals.connections += 1
        number = self.totals.connections
        try:
            with contextlib.ExitStack() as files:
                up, down = self._files(number, files)
                await self._join(reader, writer, up, down)
        except asyncio.CancelledError:
            # Only aclose() cancels: end quietly, the streams' own callback would log it as an error.
            pass
        finally:
            self.totals.open.discard(task)
            writer.transport.abort()

    def _files(self, number: int, files: contextlib.ExitStack) -> tuple[BinaryIO | None, BinaryIO | None]:
        if self._capture is None:
            return None, None
        name = self._capture / f"{number:06d}"
        return (
            files.enter_context(name.with_suffix(".up").open("wb", buffering=0)),
            files.enter_context(name.with_suffix(".down").open("wb", buffering=0)),
        )

    async def _join(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up: BinaryIO | None,
        down: BinaryIO | None,
    ) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                far_reader, far_writer = await asyncio.open_connection(self._target.host, self._target.port)
        except (OSError, TimeoutError):
            return
        try:
            pumps = (
                asyncio.create_task(self._pump(reader, far_writer, up, "up")),
                asyncio.create_task(self._pump(far_reader, writer, down, "down")),
            )
            try:
                # A half-closed connection goes on in the other direction; a reset ends both.
                done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
                if not any(pump.exception() for pump in done):
                    await asyncio.gather(*pumps)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            far_writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, copy: BinaryIO | None, way: str
    ) -> None:
        while piece := await reader.read(CHUNK):
            if copy is not None:
                copy.write(piece)
            if way == "up":
                self.totals.up += len(piece)
            else:
                self.totals.down += len(piece)
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
            await writer.drain()


async def run(relay: Relay) -> None:
    """Serve until SIGINT or SIGTERM."""
    address = await relay.start()
    print("listening", address.host, address.port, flush=True)  # noqa: T201 - the line that whoever started us waits for
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    await relay.aclose()


def main(arguments: list[str] | None = None) -> int:
    """The relay as a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m cloister.host.relay", description="A blind byte relay.")
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT to listen on (port 0: any free one)")
    parser.add_argument("--to", required=True, help="HOST:PORT of the replica")
    parser.add_argument("--capture", type=Path, help="keep both directions of every connection in this folder")
    options = parser.parse_args(arguments)
    try:
        relay = Relay(Address.parse(options.listen), Address.parse(options.to), capture=options.capture)
        asyncio.run(run(relay))
    except UsageError as error:
        print(f"{error.message}. {error.hint}", file=sys.stderr)  # noqa: T201 - the process's own standard error
        return error.exit_code
    except OSError as error:
        print(f"cannot listen: {error.strerror}", file=sys.stderr)  # noqa: T201
        return UsageError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
