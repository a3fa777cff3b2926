"""Egress: the enclave names a host, the agent opens a stream to it if it is listed, and carries what it cannot read."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Mapping

from cloister.host import head
from cloister.host.pipe import CONNECT_SECONDS, IDLE_SECONDS, Capture, Totals, join
from cloister.host.relay import Address

_AUTHORITY = re.compile(r"([a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?):([1-9][0-9]{0,4})")


class Egress:
    """Serves `CONNECT host:port`; only pairs on the list, only public addresses (unless mapped by `resolve`)."""

    def __init__(
        self,
        allow: frozenset[str],
        totals: Totals,
        *,
        resolve: Mapping[str, Address] | None = None,
        idle: float = IDLE_SECONDS,
    ) -> None:
        self._allow, self._totals, self._resolve, self._idle = allow, totals, dict(resolve or {}), idle

    async def serve(self, near: socket.socket, capture: Capture | None) -> None:
        """One connection of the enclave."""
        loop = asyncio.get_running_loop()
        request = await head.request(near, CONNECT_SECONDS)
        if request is None:
            return
        status, far = await self._open(request)
        if far is None:
            await loop.sock_sendall(near, head.answer(status))
            return
        try:
            await loop.sock_sendall(near, b"HTTP/1.1 200 OK\r\n\r\n")
        except OSError:
            far.close()
            raise
        await join(near, far, self._totals, capture, idle=self._idle)

    async def _open(self, request: head.Head) -> tuple[int, socket.socket | None]:
        if request.method != "CONNECT":
            return 405, None
        match = _AUTHORITY.fullmatch(request.target)
        if match is None or int(match[2]) > 65535:
            return 400, None
        if request.target not in self._allow:
            self._totals.refused += 1
            return 403, None
        mapped = self._resolve.get(request.target)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if mapped is not None:
                    return 200, await self._connect(mapped.host, mapped.port)
                return 200, await self._connect_public(match[1], int(match[2]))
        except (OSError, TimeoutError):
            return 502, None

    async def _connect_public(self, host: str, port: int) -> socket.socket:
        """To the first public address of the name: a name must not lead into the instance's own network."""
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for *_, address in infos:
            if ipaddress.ip_address(address[0]).is_global:
                return await self._connect(str(address[0]), port)
        raise OSError("the name has no public address")

    async def _connect(self, host: str, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        far = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(far, (host, port))
        except BaseException:
            far.close()
            raise
        return far
