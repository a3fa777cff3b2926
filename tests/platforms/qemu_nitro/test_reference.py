"""Our images under QEMU's own Nitro machine: its loader, its registers and its NSM against what we predict."""

from __future__ import annotations

import contextlib
import json
import secrets
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cbor2
import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1
from tests.image.test_build import MINIMAL, written
from tests.image.test_eif import issue

from cloister.channel.bundle import Bundle
from cloister.client.appraisal import verify_bundle
from cloister.client.session import ATTESTATION_PATH
from cloister.errors import CloisterError, MalformedError, NotGenuineError
from cloister.image import build, eif, rootfs, toolchain
from cloister.image.tree import Tree, cpio
from cloister.platforms.qemu_nitro import qemu, reference
from cloister.platforms.qemu_nitro.nsm import SecurityModule
from cloister.policy.document import Policy
from cloister.policy.draft import draft
from cloister.tee.checks import Checklist, Status
from cloister.tee.nitro import measure, roots
from cloister.tee.nitro import verify as nitro
from cloister.tee.nitro.attest import MEDIA_TYPE
from cloister.tee.sim.attest import SimulatedNitro
from cloister.tee.sim.root import SimulatedRoot
from cloister.trust.anchors import Anchor
from cloister.wire import cbor
from cloister.wire.strict_json import encode_base64url

pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(
        not reference.ready(),
        reason="the reference QEMU is not compiled (make lab-reference): images are not compared with it",
    ),
    pytest.mark.timeout(600),
]
SECONDS = 240
#: Registers 3 and 4 of what the machine is told of its parent.
PARENT = measure.parent_registers(role_arn=reference.ROLE_ARN, instance_id=reference.INSTANCE_ID)


@contextlib.contextmanager
def machine(folder: Path, image: bytes, memory_mib: int) -> Iterator[qemu.Guest]:
    """An image under the reference QEMU, with our vsock device; `folder`/v is where programs reach it."""
    (folder / "image.eif").write_bytes(image)
    words = ["--socket", f"{folder}/d", "--uds-path", f"{folder}/v", "--guest-cid", "16"]
    module = "cloister.platforms.qemu_nitro.vsock_device"
    with subprocess.Popen([sys.executable, "-m", module, *words], stdout=subprocess.PIPE, text=True) as device:
        assert device.stdout is not None
        assert device.stdout.readline() == "ready\n"
        guest = qemu.Guest.start(
            reference.qemu(),
            qemu.Machine(
                kernel=folder / "image.eif", initrd=None, cmdline="", memory_mib=memory_mib,
                vsock_socket=folder / "d", console=folder / "console",
            ),
            reference.argv,
        )  # fmt: skip
        try:
            yield guest
        finally:
            guest.stop()
            device.terminate()


@contextlib.contextmanager
def parent(folder: Path) -> Iterator[str]:
    """The parent agent; the address for clients. It answers init's heartbeat."""
    (folder / "host.toml").write_text(f'listen = "127.0.0.1:0"\nuds = "{folder}/v"\nheartbeat = true\n')
    words = [sys.executable, "-m", "cloister.host.agent", "--config", f"{folder}/host.toml"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as agent:
        try:
            assert agent.stdout is not None
            _, host, port = agent.stdout.readline().split()
            yield f"http://{host}:{port}"
        finally:
            agent.terminate()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[eif.Image, dict[int, bytes]]:
    """A signed image with the bundled model and the registers in its measurements.json."""
    folder = tmp_path_factory.mktemp("image")
    key, certificate = issue(SECP384R1())
    (folder / "k.pem").write_bytes(key)
    (folder / "c.pem").write_bytes(certificate)
    text = MINIMAL + '[nitro]\nsigning_key = "k.pem"\ncertificate = "c.pem"\n'
    made = build.build(written(folder, text), folder / "out")
    predicted = json.loads(made.measurements.read_text())["measurements"]
    image = eif.parse(made.image.read_bytes())
    return image, {int(name.removeprefix("PCR")): bytes.fromhex(value) for name, value in predicted.items()}


@dataclass(frozen=True)
class Told:
    """What a booted replica handed out: a bundle for a nonce, and what QEMU's NSM says in it."""

    bundle: bytes
    nonce: bytes
    predicted: dict[int, bytes]

    @property
    def document(self) -> bytes:
        [offer] = Bundle.from_bytes(self.bundle).offers
        return offer.data

    @property
    def parts(self) -> list[cbor.Value]:
        """COSE_Sign1: protected header, unprotected header, payload, signature."""
        return cbor2.loads(self.document)

    @property
    def payload(self) -> dict:
        return cbor2.loads(self.parts[2])

    @property
    def policy(self) -> Policy:
        """One that accepts these registers from a genuine or a SIMULATED module."""
        statement = Bundle.from_bytes(self.bundle).statement
        text = draft(
            name="reference", measurements={f"pcr{index}": value.hex() for index, value in self.predicted.items()},
            model_sha256=statement.model_sha256, config_sha256=statement.config_sha256,
            simulated_root_pem=SimulatedRoot.create().pem,
        )  # fmt: skip
        return Policy.from_toml(text.encode())


@pytest.fixture(scope="module", params=["signed", "unsigned"])
def told(request: pytest.FixtureRequest, built: tuple[eif.Image, dict[int, bytes]]) -> Told:
    """Boot, be its parent, ask for evidence over vsock."""
    image, predicted = built
    if request.param == "unsigned":
        image, predicted = replace(image, signature=b""), {i: v for i, v in predicted.items() if i != 8}
    nonce = secrets.token_bytes(32)
    with (
        tempfile.TemporaryDirectory(prefix="clo-") as name,
        parent(Path(name)) as url,
        machine(Path(name), eif.write(image), 1024) as guest,
    ):
        _until(guest, "cloister: serving ")
        answer = httpx2.post(url + ATTESTATION_PATH, json={"nonce": encode_base64url(nonce)}, timeout=30)
    assert answer.status_code == 200, answer.text
    return Told(answer.content, nonce, predicted)


def _until(guest: qemu.Guest, marker: str) -> None:
    limit = time.monotonic() + SECONDS
    while True:
        said = guest.machine.console.read_text(errors="replace") if guest.machine.console.exists() else ""
        if marker in said:
            return
        ended = guest.wait(0.1)
        assert ended is None, f"{ended}\n{said[-2000:]}"
        assert time.monotonic() < limit, said[-2000:]


def test_the_registers_are_as_predicted(told: Told) -> None:
    expected = {index: bytes(48) for index in range(16)} | told.predicted | PARENT
    assert told.payload["pcrs"] == expected
    assert (told.payload["module_id"], told.payload["digest"]) == (reference.MODULE_ID, "SHA384")


def test_the_module_carries_what_the_replica_binds(told: Told) -> None:
    bundle = Bundle.from_bytes(told.bundle)
    assert (bundle.nonce, [offer.media_type for offer in bundle.offers]) == (told.nonce, [MEDIA_TYPE])
    assert told.payload["user_data"] == bundle.binding
    assert told.payload["nonce"] == bundle.challenge


def test_the_document_is_never_accepted(told: Told) -> None:
    """Everything in it is right but that nobody signed it."""
    assert cbor2.loads(told.parts[0]) == {1: -1}
    assert not any(told.parts[3])
    with pytest.raises(MalformedError) as refused:
        verify_bundle(told.bundle, told.policy, now=datetime.now(UTC), nonce=told.nonce)
    assert refused.value.verdict is not None
    assert [check.id for check in refused.value.verdict.checks if check.status is Status.FAILED] == ["nitro.cose"]


@pytest.mark.parametrize("anchors", [roots.ANCHORS, (*roots.ANCHORS, Anchor.simulated(SimulatedRoot.create().pem))])
def test_nor_when_it_is_dressed_as_signed(told: Told, anchors: tuple[Anchor, ...]) -> None:
    _, unprotected, payload, _ = told.parts
    dressed = cbor2.dumps([cbor2.dumps({1: -35}), unprotected, payload, bytes(95) + b"\x01"])
    checklist = Checklist()
    checklist.plan(nitro.CHECKS)
    with pytest.raises((NotGenuineError, MalformedError)):
        nitro.verify(
            dressed, now=datetime.now(UTC), anchors=anchors, max_age=timedelta(hours=1), max_skew=timedelta(hours=1),
            checklist=checklist,
        )  # fmt: skip
    statuses = {check.id: check.status for check in checklist.results()}
    assert statuses["nitro.cose"] is Status.PASSED
    assert statuses["nitro.signature"] is Status.NOT_REACHED


# --- The security module that we emulate, against QEMU's ------------------------------------------------------------

EVERYTHING = {"user_data": b"u" * 512, "nonce": b"n" * 512, "public_key": b"p" * 1024}
#: In this order, because some change the module. QEMU's answers and ours must say the same.
SAME: tuple[object, ...] = (
    "DescribeNSM", "GetRandom", *({"DescribePCR": {"index": index}} for index in range(33)),
    {"DescribePCR": {"index": "1"}}, {"DescribePCR": {}}, {"DescribePCR": {"index": 1, "more": 2}},
    {"ExtendPCR": {"index": 16, "data": b"x"}}, {"ExtendPCR": {"index": 16, "data": b""}},
    {"ExtendPCR": {"index": 0, "data": b"x"}}, {"ExtendPCR": {"index": 32, "data": b"x"}}, {"ExtendPCR": {"index": 16}},
    {"DescribePCR": {"index": 16}}, {"Attestation": {}}, {"LockPCR": {"index": 17}}, {"LockPCR": {"index": 17}},
    {"LockPCR": {"index": 0}}, {"LockPCR": {"index": 32}}, {"Attestation": EVERYTHING}, {"LockPCRs": {"range": 20}},
    {"LockPCRs": {"range": 0}}, {"LockPCRs": {"range": 33}}, {"DescribePCR": {"index": 19}},
    {"DescribePCR": {"index": 20}}, {"ExtendPCR": {"index": 19, "data": b"x"}}, "DescribeNSM", {"Attestation": {"nonce": b"n"}},
    "Nothing", {"Nothing": {}}, {}, [], 7, None,
)  # fmt: skip
#: QEMU takes these, or has another word for no; we take no more than the module's interface describes.
STRICTER: tuple[tuple[object, str], ...] = (
    ({"DescribePCR": {"index": 65536}}, "InvalidIndex"),
    ({"DescribePCR": {"index": -1}}, "InvalidIndex"),
    ({"ExtendPCR": {"index": 30, "data": "x"}}, "InvalidOperation"),
    ({"Attestation": {"user_data": "text"}}, "InvalidOperation"),
    *(({"Attestation": {name: value + b"x"}}, "InputTooLarge") for name, value in EVERYTHING.items()),
)
PROBE = """
from cloister.tee.nitro.attest import NitroSecurityModule
for request in {requests}:
    print("answer", NitroSecurityModule()._exchange(bytes.fromhex(request)).hex(), flush=True)
"""


def test_both_modules_answer_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image whose command asks /dev/nsm from a list instead of serving."""
    requests = [cbor2.dumps(each) for each in (*SAME, *(request for request, _ in STRICTER))]
    script = PROBE.format(requests=[each.hex() for each in requests]).encode().hex()
    command = f"/usr/bin/python3.11\n-I\n-c\nexec(bytes.fromhex('{script}'))\n"
    monkeypatch.setattr(build, "COMMAND", command.encode())
    monkeypatch.setattr(build, "COMPRESSION_LEVEL", 1)
    chosen = written(tmp_path, MINIMAL)
    image = build.assemble(chosen, rootfs.build(chosen, build.read_lock(None)))
    with (
        tempfile.TemporaryDirectory(prefix="clo-") as name,
        parent(Path(name)),
        machine(Path(name), eif.write(image), 1024) as guest,
    ):
        guest.wait(SECONDS)
        console = guest.machine.console.read_text(errors="replace")
    theirs = [bytes.fromhex(line.split()[1]) for line in console.splitlines() if line.startswith("answer ")]
    assert len(theirs) == len(requests), console[-2000:]
    signer = SimulatedNitro(SimulatedRoot.create(), {}, module_id=reference.MODULE_ID)
    module = SecurityModule(signer, image.measurements() | PARENT)
    for request, answer in zip(SAME, theirs, strict=False):
        assert _said(module.handle(cbor2.dumps(request))) == _said(answer), request
    for (request, word), answer in zip(STRICTER, theirs[len(SAME) :], strict=True):
        ours = cbor2.loads(module.handle(cbor2.dumps(request)))
        assert ours == {"Error": word} != cbor2.loads(answer)


def _said(answer: bytes) -> object:
    """An answer without what differs by nature: random octets, the signer, the time."""
    said = cbor2.loads(answer)
    match said:
        case {"GetRandom": {"random": random}}:
            return len(random)
        case {"Attestation": {"document": document}}:
            payload = cbor2.loads(cbor2.loads(document)[2])
            return {
                name: value for name, value in payload.items() if name not in ("certificate", "cabundle", "timestamp")
            }
    return said


# --- Image files that are not as they should be ---------------------------------------------------------------------


def _crc(data: bytes) -> bytes:
    return data[:544] + struct.pack(">I", zlib.crc32(data[548:], zlib.crc32(data[:544]))) + data[548:]


def _section(data: bytes, number: int) -> int:
    return struct.unpack_from(">Q", data, 28 + 8 * number)[0]


def _kind(data: bytes, number: int, kind: int, flags: int = 0) -> bytes:
    at = _section(data, number)
    return _crc(data[:at] + struct.pack(">HH", kind, flags) + data[at + 4 :])


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


#: What is done to a file of five sections; what QEMU says, None where it boots the file. We refuse every one.
CHANGED: dict[str, tuple[Callable[[bytes], bytes], str | None]] = {
    "checksum": (_flipped, "CRC mismatch"),
    "cut": (lambda data: data[:-5], "Failed to read"),
    "cut in the header": (lambda data: data[:500], "Failed to read EIF header"),
    "magic": (lambda data: _crc(b".elf" + data[4:]), "Magic mismatch"),
    "another header flag": (lambda data: _crc(data[:6] + b"\0\2" + data[8:]), "Expected EIF flags to be 0"),
    "section flags": (lambda data: _kind(data, 2, 5, 1), "Expected EIF section header flags to be 0"),
    "33 sections": (lambda data: _crc(data[:26] + b"\0\x21" + data[28:]), "section count"),
    "two kernels": (lambda data: _kind(data, 2, 1), "More than 1 kernel"),
    "no kernel": (lambda data: _kind(data, 0, 5), "No kernel section"),
    "another size in the table": (
        lambda data: _crc(data[:284] + struct.pack(">Q", 1) + data[292:]), "size mismatch",
    ),
    # QEMU skips what it does not know; nitro-cli does not take it either.
    "an unknown section": (lambda data: _kind(data, 2, 6), None),
    # Unmeasured bytes that nobody reads.
    "a section that is not in the table": (
        lambda data: _crc(data[:26] + b"\0\4" + data[28:])[:_section(data, 4)] + data[_section(data, 4) :], "CRC mismatch",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def small() -> bytes:
    """A file with our kernel and nothing to run: the kernel comes as far as to panic for want of an init."""
    kernel = toolchain.KERNEL.make().read_bytes()
    boot = Tree()
    boot.directory("dev")
    archive = cpio(boot)
    return eif.write(
        eif.Image(
            kernel=kernel, cmdline=qemu.PROBE_CMDLINE.encode(), ramdisks=(archive, archive), metadata=b"{}"
        )
    )  # fmt: skip


def _ended(image: bytes) -> tuple[qemu.Ended | None, str]:
    with tempfile.TemporaryDirectory(prefix="clo-") as name, machine(Path(name), image, 256) as guest:
        return guest.wait(SECONDS), guest.machine.words.read_text(errors="replace")


def test_the_small_file_boots(small: bytes) -> None:
    ended, words = _ended(small)
    assert ended is not None
    assert ended.outcome is qemu.Outcome.PANIC, words
    assert eif.parse(small).metadata == b"{}"


@pytest.mark.parametrize("name", CHANGED)
def test_a_wrong_file(small: bytes, name: str) -> None:
    change, words = CHANGED[name]
    changed = change(small)
    with pytest.raises(MalformedError):
        eif.parse(changed)
    ended, said = _ended(changed)
    assert ended is not None
    if words is None:
        assert ended.outcome is qemu.Outcome.PANIC, said
    else:
        assert ended.outcome is qemu.Outcome.FAILED
        assert words in said


@pytest.mark.parametrize("certificate", [b"", b"not PEM"])
def test_a_wrong_signature_section(small: bytes, certificate: bytes) -> None:
    section = cbor2.dumps([{"signing_certificate": list(certificate), "signature": []}])
    image = replace(eif.parse(small), signature=section)
    with pytest.raises(CloisterError):
        image.measurements()
    ended, _ = _ended(eif.write(image))
    assert ended is not None
    assert ended.outcome is qemu.Outcome.FAILED
