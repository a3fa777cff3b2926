"""One HTTP/1.1 exchange over a stream that is already open (RFC 9112), bounded."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping

from cloister.enclave.net import CutError
from cloister.errors import UndecidedError


def exchange(
    stream: socket.socket,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes | None,
    *,
    what: str,
    limit: int,
) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and body (at most `limit` bytes) of the answer; closes the stream; raises UndecidedError.

    `headers` has `host`; `what` names the other side in errors.
    """
    connection = http.client.HTTPConnection("stream")
    connection.sock = stream
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {**headers, "connection": "close"}.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        data = response.read(limit + 1)
        if len(data) > limit:
            raise UndecidedError(f"{what} answered with more than {limit} bytes")
        if response.length:
            raise CutError(f"{what} closed the connection in the middle of its answer")
        return response.status, {name.lower(): value for name, value in response.getheaders()}, data
    except OSError as error:
        raise CutError(f"the connection to {what} was cut ({type(error).__name__})") from None
    except (ValueError, http.client.HTTPException) as error:
        # The class alone: a message of the library may quote what was received.
        raise UndecidedError(f"{what} gave no proper answer ({type(error).__name__})") from None
    finally:
        connection.close()
        stream.close()
