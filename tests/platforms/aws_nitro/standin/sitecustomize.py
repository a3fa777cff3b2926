"""Imported by every Python process of these tests: puts a laid-out /sys and unix sockets where EC2 has the real things.

Here is no Nitro hypervisor, so a stream to the enclave's context identifier has to lead to the stand-in's socket. All
else of `cloister up --platform aws-nitro` and of the parent agent runs as it is.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from cloister.host import vsock
from cloister.platforms.aws_nitro import parent

STATE = Path(os.environ["STANDIN"])


class StandInVsock:
    """Implements host.vsock.Vsock: hybrid sockets named after the context identifier."""

    def __init__(self, cid: int) -> None:
        self._hybrid = vsock.HybridVsock(STATE / f"vsock_{cid}")

    async def connect(self, port: int) -> socket.socket:
        return await self._hybrid.connect(port)

    def listen(self, port: int) -> socket.socket:
        return self._hybrid.listen(port)


vsock.KernelVsock = StandInVsock  # type: ignore[misc, assignment]
parent.ROOT = Path(os.environ["STANDIN_ROOT"])
