"""A process that stands for an enclave: the hybrid vsock sockets that a device offers, and a gateway behind them.

    python fake_enclave.py PATH [--fail] [--silent-after FILE] [--detach PIDFILE]

It enforces what the device enforces: no stream without `CONNECT port`, and nobody behind any port but the gateway's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from pathlib import Path

from cloister.wire import ports


async def serve(path: Path, silent: Path | None) -> None:
    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            if await reader.readline() == b"CONNECT %d\n" % ports.GATEWAY:
                writer.write(b"OK 1\n")
                while head := await reader.readuntil(b"\r\n\r\n"):
                    if silent is not None and silent.exists():
                        await asyncio.sleep(3600)
                    target = head.split(b" ", 2)[1]
                    if target == b"/slow":
                        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsl")
                        await writer.drain()
                        # Waits for one byte of the client: a stream in progress, for as long as the test wants.
                        await reader.readexactly(1)
                        writer.write(b"ow\r\n")
                    else:
                        body = b"%d" % os.getpid()
                        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                    await writer.drain()
        writer.close()

    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(stream, path)
    await server.serve_forever()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--fail", action="store_true")
    parser.add_argument("--silent-after", type=Path)
    parser.add_argument("--detach", type=Path)
    options = parser.parse_args()
    if options.fail:
        return 3
    if options.detach is not None:
        if pid := os.fork():
            options.detach.write_text(str(pid))
            return 0
        os.setsid()
    asyncio.run(serve(options.path, options.silent_after))
    return 0


if __name__ == "__main__":
    sys.exit(main())
