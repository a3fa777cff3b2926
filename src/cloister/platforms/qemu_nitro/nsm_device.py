"""virtio-nsm (virtio device id 33) as a process: `python -m cloister.platforms.qemu_nitro.nsm_device --socket S ...`.

One queue; a request is two buffers, first the request to read, then the room for its answer, as QEMU's own virtio-nsm
and Linux's driver (drivers/misc/nsm.c) have it. SIMULATED: see `nsm`.
"""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Sequence
from pathlib import Path

from cloister.errors import UsageError
from cloister.platforms.qemu_nitro import vhost_user
from cloister.platforms.qemu_nitro.nsm import MAX_REQUEST, MAX_RESPONSE, SecurityModule, boot_registers
from cloister.platforms.qemu_nitro.virtqueue import malformed
from cloister.tee.sim.attest import SimulatedNitro
from cloister.tee.sim.root import SimulatedRoot

VIRTIO_ID = 33
PCR_SIZE = 48
#: Requests answered before other events are looked at.
BURST = 16


class NsmDevice(vhost_user.Backend):
    """Answers each request in order."""

    def __init__(self, module: SecurityModule) -> None:
        super().__init__(queues=1)
        self._module = module

    def process(self) -> bool:
        """Answer what waits."""
        (queue,) = self.queues
        for _ in range(BURST):
            request, room = queue.pop(), queue.pop()
            if request is None or room is None:
                if request is not None:
                    queue.unpop()
                queue.notify()
                return False
            if request.writable or room.readable or not room.writable:
                raise malformed("an NSM request is a buffer to read and then a buffer to write")
            # One byte beyond the limit is enough to be refused.
            data = request.read(MAX_REQUEST + 1)
            written = room.write(self._module.handle(data, min(sum(map(len, room.writable)), MAX_RESPONSE)))
            queue.push(request, 0)
            queue.push(room, written)
        queue.notify()
        return True


def _register(text: str) -> tuple[int, bytes]:
    """`INDEX=HEX` of the command line."""
    index, _, digest = text.partition("=")
    try:
        value = int(index), bytes.fromhex(digest)
    except ValueError:
        value = -1, b""
    if not 0 <= value[0] < 16 or len(value[1]) != PCR_SIZE:
        raise argparse.ArgumentTypeError("a register is INDEX=HEX: 0 to 15, and 48 bytes")
    return value


def start(arguments: Sequence[str]) -> None:
    """Read the options and be the device."""
    parser = argparse.ArgumentParser(prog="nsm_device", description="SIMULATED Nitro security module for QEMU")
    parser.add_argument("--socket", type=Path, required=True, help="where QEMU connects")
    parser.add_argument("--root", type=Path, required=True, help="file of the simulated root; made if missing")
    parser.add_argument("--pcr", type=_register, action="append", default=[], metavar="INDEX=HEX")
    parser.add_argument("--role-arn", help="the instance's role, for PCR3")
    parser.add_argument("--instance-id", default=f"i-{secrets.token_hex(8)}0", help="the instance, for PCR4")
    parser.add_argument("--debug", action="store_true", help="registers of an enclave in debug mode: image zeros")
    options = parser.parse_args(arguments)
    image = dict(options.pcr)
    if not options.debug and not {0, 1, 2} <= image.keys():
        raise UsageError("PCR0, PCR1 and PCR2 of the image are needed", hint="Give --pcr for each, or --debug.")
    signer = SimulatedNitro(
        SimulatedRoot.load_or_create(options.root), {}, module_id=f"{options.instance_id}-enc{secrets.token_hex(8)}"
    )
    pcrs = boot_registers(image, role_arn=options.role_arn, instance_id=options.instance_id, debug=options.debug)
    vhost_user.run(NsmDevice(SecurityModule(signer, pcrs)), options.socket)


if __name__ == "__main__":
    vhost_user.main(start)
