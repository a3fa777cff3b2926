"""TLS that ends inside the enclave: whoever carries the stream sees none of it and can only cut it."""

from __future__ import annotations

import socket
import ssl

from cloister.enclave.net import CutError
from cloister.errors import UndecidedError, UsageError


def context(roots: str | None) -> ssl.SSLContext:
    """A client's context that trusts `roots` (PEM), or without them the system's store; raises UsageError."""
    if roots is None:
        made = ssl.create_default_context()
    else:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            made.load_verify_locations(cadata=roots)
        except (ssl.SSLError, ValueError):
            raise UsageError("the pinned TLS roots are not PEM certificates") from None
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    return made


def wrap(made: ssl.SSLContext, stream: socket.socket, host: str) -> socket.socket:
    """TLS to `host` on a stream that somebody else carries; closes it and raises UndecidedError (CutError)."""
    try:
        return made.wrap_socket(stream, server_hostname=host)
    except ssl.SSLCertVerificationError:
        stream.close()
        raise UndecidedError(
            f"who answered is not {host}: its TLS certificate does not verify",
            hint="Somebody on the way intercepts TLS, the roots are wrong, or this machine's clock is.",
        ) from None
    except OSError as error:
        stream.close()
        raise CutError(
            f"no TLS connection to {host} ({type(error).__name__})",
            hint="The way through the parent was cut, or what answers there does not speak TLS.",
        ) from None
