"""The instance role's credentials for the enclave, which has no network of its own to ask for them.

They are no secret from the parent, and give the enclave nothing that the parent has not: what protects a key is that
KMS answers only to the attested public key.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from cloister.errors import UndecidedError
from cloister.host import head
from cloister.host.pipe import Capture
from cloister.host.relay import Address

#: The instance metadata service (version 2 only).
METADATA = Address("169.254.169.254", 80)
TOKEN_SECONDS = 300
SECONDS = 5.0
_ROLE = "/latest/meta-data/iam/security-credentials/"
FIELDS = ("AccessKeyId", "SecretAccessKey", "Token", "Expiration")

Source = Callable[[], dict[str, str]]


def instance(metadata: Address = METADATA) -> Source:
    """From the metadata service: a token (PUT), the role's name, its credentials."""

    def ask() -> dict[str, str]:
        connection = http.client.HTTPConnection(metadata.host, metadata.port, timeout=SECONDS)
        try:
            token = _text(
                connection, "PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
            )
            shown = {"X-aws-ec2-metadata-token": token}
            role = _text(connection, "GET", _ROLE, shown).split("\n")[0].strip()
            return _checked(_text(connection, "GET", _ROLE + role, shown))
        except (OSError, http.client.HTTPException) as error:
            raise UndecidedError(f"the instance metadata service does not answer: {type(error).__name__}") from None
        finally:
            connection.close()

    return ask


def file(path: Path) -> Source:
    """From a JSON file of the same shape: for machines that are not on EC2."""

    def ask() -> dict[str, str]:
        try:
            return _checked(path.read_text("utf-8"))
        except OSError as error:
            raise UndecidedError(f"cannot read the credentials file: {error.strerror}") from None

    return ask


def environment() -> Source:
    """From AWS_ACCESS_KEY_ID and its companions."""

    def ask() -> dict[str, str]:
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        values = dict(zip(FIELDS, (*(os.environ.get(name, "") for name in names), "9999-12-31T23:59:59Z"), strict=True))
        if not values["AccessKeyId"] or not values["SecretAccessKey"]:
            raise UndecidedError("there are no AWS credentials in the environment")
        return values

    return ask


class Credentials:
    """Serves `GET /credentials` in the shape of the ECS container credentials provider."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def serve(self, near: socket.socket, capture: Capture | None) -> None:
        """One connection of the enclave; never captured, never logged."""
        del capture
        loop = asyncio.get_running_loop()
        request = await head.request(near, SECONDS)
        if request is None:
            return
        if (request.method, request.target) != ("GET", "/credentials"):
            await loop.sock_sendall(near, head.answer(404))
            return
        try:
            values = await asyncio.to_thread(self._source)
        except UndecidedError:
            await loop.sock_sendall(near, head.answer(502))
            return
        body = json.dumps(values).encode("utf-8")
        await loop.sock_sendall(near, head.answer(200, fields={"Content-Type": "application/json"}, body=body))


def _text(connection: http.client.HTTPConnection, method: str, path: str, fields: dict[str, str]) -> str:
    connection.request(method, path, headers=fields)
    answer = connection.getresponse()
    body = answer.read(65536)
    if answer.status != 200:
        raise UndecidedError(f"the instance metadata service answered {answer.status}", hint="Has the instance a role?")
    return body.decode("utf-8", "replace")


def _checked(text: str) -> dict[str, str]:
    try:
        values = json.loads(text)
        return {name: str(values[name]) for name in FIELDS}
    except (ValueError, KeyError, TypeError):
        raise UndecidedError("the credentials are not in the shape of the metadata service's") from None
