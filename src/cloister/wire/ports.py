"""The vsock ports between a Nitro enclave and its parent, the same on EC2 and under emulation.

The enclave listens on GATEWAY; the parent (CID 3) listens on the others. All but HEARTBEAT, EGRESS and TELEMETRY speak
HTTP/1.1; none of them is trusted with anything but ciphertext, public data and availability.
"""

from __future__ import annotations

#: The parent's context identifier as every enclave sees it.
PARENT_CID = 3

#: Enclave: the gateway (HTTP/1.1 with sealed bodies).
GATEWAY = 5000
#: Parent: the model store, `GET /models/NAME` with `Range`.
STORE = 5001
#: Parent: the instance's credentials, `GET /credentials`.
CREDENTIALS = 5002
#: Parent: egress, `CONNECT host:port HTTP/1.1`, then raw bytes (the TLS in them ends inside the enclave).
EGRESS = 5003
#: Parent: log lines and metrics, one JSON object a line.
TELEMETRY = 5004
#: Parent: one byte 0xB7 each way when the image's init starts (nitro-cli's convention).
HEARTBEAT = 9000
