"""A real image in a real virtual machine: built, booted, its key released, its model opened, asked, broken.

Runs where `make lab` was run; the evidence is SIMULATED, everything else is what runs on EC2. `test_nitro_faults.py`
has parents that lie, `test_nitro_large.py` a model of true size.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from tests.e2e import nitro_lab
from tests.e2e.nitro_lab import NAME, Enclave

from cloister.api import tenants
from cloister.cli.chat import KEY_VARIABLE, stream_chat
from cloister.client.transport import SealedTransport
from cloister.enclave.engine.config import BUNDLED_MODEL
from cloister.errors import ApiError, CloisterError, GatewayRefusedError, TruncatedResponse, UndecidedError
from cloister.image import eif
from cloister.platforms.platform import Launch
from cloister.platforms.qemu_nitro.kms import service
from cloister.platforms.state import Processes
from cloister.weights import manifest

pytestmark = nitro_lab.marks
PROMPT = "Redact: Zebulon Quixworth, SSN 987-65-4321, seen today."
CANARIES = (b"Quixworth", b"987-65-4321")
LONG = [{"role": "user", "content": "Write a note about a patient with asthma and gout."}]
#: A tenant's API key: what others see of it is its hash in the measured configuration.
KEY = tenants.new_key()
#: Processor seconds of the emulator from boot to the first answer: a shared machine's clock says little.
FIRST_ANSWER = 60.0


@pytest.fixture(scope="module")
def enclave() -> Iterator[Enclave]:
    """The bundled model, sealed, for one tenant; and how long it took from the start to an answer."""
    with nitro_lab.project() as made:
        entry = tenants.to_toml(tenants.Tenant(id="clinic-1", key_sha256=tenants.fingerprint(KEY)))
        with (made.project / "cloister.toml").open("a") as file:
            file.write("\n" + entry)
        made.start("--listen", f"127.0.0.1:{nitro_lab.free_port()}")
        yield made


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def test_from_boot_to_the_first_answer(enclave: Enclave) -> None:
    """Start of agent, KMS and machine until it is verified, then verify and ask as a client; the build is left out."""
    began = time.monotonic()
    transport = SealedTransport(enclave.url, enclave.policy)
    assert next(stream_chat(transport, LONG, max_tokens=5))
    asked = time.monotonic() - began
    transport.close()
    used = nitro_lab.processor_seconds(enclave.pid("qemu"))
    print(
        f"booted and verified in {enclave.up['seconds']:.1f} s, first token {asked:.1f} s after; emulator {used:.1f} s"
    )
    assert used < FIRST_ANSWER


def test_verified_by_predicted_measurements(enclave: Enclave) -> None:
    done = enclave.run(
        "verify", enclave.url, "--policy", enclave.up["policy"], "--measurements", enclave.up["measurements"], "--json"
    )
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    predicted = json.loads(Path(enclave.up["measurements"]).read_text())["measurements"]
    assert {name.upper(): value for name, value in verdict["measurements"].items()}.items() >= predicted.items()
    # PCR4 is the parent's and is there too: what the security module says, not what we sent it.
    assert int(verdict["measurements"]["pcr4"], 16)
    assert verdict["simulated"] is True


def test_other_measurements_are_refused(enclave: Enclave, tmp_path: Path) -> None:
    document = json.loads(Path(enclave.up["measurements"]).read_text())
    pcr2 = document["measurements"]["PCR2"]
    document["measurements"]["PCR2"] = f"{int(pcr2, 16) ^ 1:096x}"
    file = tmp_path / "measurements.json"
    file.write_text(json.dumps(document))
    done = enclave.run("verify", enclave.url, "--policy", enclave.up["policy"], "--measurements", str(file))
    assert done.returncode == 5
    assert "PCR2" in done.stderr


def test_a_policy_one_bit_away_refuses(enclave: Enclave, tmp_path: Path) -> None:
    pcr0 = json.loads(Path(enclave.up["measurements"]).read_text())["measurements"]["PCR0"]
    text = enclave.policy_file.read_text()
    assert pcr0 in text
    file = tmp_path / "policy.toml"
    file.write_text(text.replace(pcr0, f"{int(pcr0, 16) ^ (1 << 200):096x}"))
    done = enclave.run("chat", enclave.url, "--policy", str(file), PROMPT)
    assert done.returncode == 5, done.stdout
    assert not done.stdout


def test_a_key_of_no_tenant_is_refused_inside(enclave: Enclave) -> None:
    for environment in ({KEY_VARIABLE: tenants.new_key()}, {KEY_VARIABLE: ""}):
        refused = enclave.run("chat", enclave.url, "--policy", enclave.up["policy"], PROMPT, **environment)
        assert refused.returncode == ApiError.exit_code
        assert "API key" in refused.stderr


# --- What the parent sees ---------------------------------------------------------------------------------------------


def _data_key(enclave: Enclave) -> bytes:
    """The plaintext data key, taken from the SIMULATED KMS's own state: nobody else may be found to have it."""
    owner = load_pem_public_key((enclave.project / "owner.pub.pem").read_bytes())
    head = manifest.read((enclave.project / "store" / f"{NAME}.sealed").read_bytes(), owner)
    wrapped = head.manifest.key
    state = json.loads((enclave.project / "kms" / "state.json").read_text())
    material = base64.b64decode(state["keys"][wrapped.key_id.rpartition("/")[2]]["material"])
    start = len(service.MARK) + 16
    nonce, sealed = wrapped.ciphertext[start : start + service.NONCE], wrapped.ciphertext[start + service.NONCE :]
    return AESGCM(material).decrypt(nonce, sealed, service._associated(wrapped.context))


def _memory(pid: int) -> bytes:
    """All that a process can write to; its mappings of the guest's memory, which on EC2 no parent has, left out."""
    found, process = [], Path(f"/proc/{pid}")
    with (process / "mem").open("rb", buffering=0) as memory:
        for line in (process / "maps").read_text().splitlines():
            span, rights = line.split()[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            if rights.startswith("rw") and "[v" not in line and "memory-backend-memfd" not in line:
                with contextlib.suppress(OSError, ValueError):
                    memory.seek(start)
                    found.append(memory.read(end - start))
    assert sum(map(len, found)) > 1_000_000
    return b"".join(found)


def _files(*folders: Path) -> dict[str, bytes]:
    """Every regular file under the folders; sockets and what vanishes meanwhile are no files."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                with contextlib.suppress(OSError):
                    found[str(path)] = path.read_bytes()
    return found


def _forms(secret: bytes) -> set[bytes]:
    """As it is, in hexadecimal, in both kinds of base64 (whole groups of them)."""
    text = {secret.hex().encode(), secret.hex().upper().encode()}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text.add(encode(secret[: len(secret) // 3 * 3]))
    return {secret, *text}


def _found(seen: dict[str, bytes], secrets: dict[str, bytes]) -> list[tuple[str, str]]:
    """Which secret lies where."""
    return [
        (name, place)
        for place, data in seen.items()
        for name, secret in secrets.items()
        if any(form in data for form in _forms(secret))
    ]


def test_sealed_streamed_chat_leaves_no_trace_at_the_parent(enclave: Enclave) -> None:
    """Request, answer, API key, weights and data key: in no door's traffic, log, file or process of the parent.

    QEMU's own memory is the guest's and is not searched: here nothing isolates it, on EC2 the Nitro hypervisor does.
    """
    temporary = Path(tempfile.gettempdir())
    before = set(temporary.iterdir())
    done = enclave.run("chat", enclave.url, "--policy", enclave.up["policy"], PROMPT)
    assert done.returncode == 0, done.stderr
    answer = done.stdout.strip().encode()
    assert len(answer) > 20
    weights = BUNDLED_MODEL.read_bytes()
    slices = [weights[at : at + 64] for at in range(4096, len(weights) - 64, len(weights) // 50)]
    secrets = {
        **{repr(canary): canary for canary in CANARIES},
        "answer": answer[:40],
        "API key": KEY.encode(),
        "data key": _data_key(enclave),
        **{f"weights {number}": piece for number, piece in enumerate(slices) if len(set(piece)) > 32},
    }
    assert len(secrets) > 25
    seen = _files(enclave.home)
    kms = str(enclave.project / "kms")
    assert not any(secret in seen[f"{kms}/state.json"] for secret in _forms(secrets["data key"])), "wrapped at rest"
    for name in ("agent", "vsock", "nsm", "kms"):
        pid = enclave.pid(name)
        for part in ("cmdline", "environ"):
            seen[f"{name} {part}"] = Path(f"/proc/{pid}/{part}").read_bytes()
        if name != "kms":  # which has just released the data key, and is no part of the parent
            seen[f"{name} memory"] = _memory(pid)
    for new in set(temporary.iterdir()) - before:
        seen |= _files(new) if new.is_dir() else {str(new): new.read_bytes()} if new.is_file() else {}
    # The search is over something: every door's traffic, the sealed file, every log, and both processes that carry it.
    for part, least in {"ingress": 5000, "egress": 3000}.items():
        carried = [len(data) for path, data in seen.items() if Path(path).name.startswith(part)]
        assert sum(carried) > least, part
    for name in (
        f"{NAME}.sealed",
        "console",
        "agent.log",
        "vsock.log",
        "nsm.log",
        "qemu.log",
        "kms.log",
        "cloister.toml",
    ):
        assert any(path.endswith(f"/{name}") for path in seen), name
    assert _found(seen, secrets) == []


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """The control: in a file and in the memory of a process, as it is and encoded."""
    secret = os.urandom(32)
    for number, form in enumerate(sorted(_forms(secret))):
        (tmp_path / str(number)).write_bytes(b"\x00" + form + b"\xff")
    code = "import sys; kept = bytes.fromhex(sys.stdin.readline()); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(secret[::-1].hex().encode() + b"\n")
        process.stdin.flush()
        process.stdout.readline()
        seen = {"memory": _memory(process.pid), **_files(tmp_path)}
        process.stdin.close()
    assert len(_found(seen, {"file": secret})) == len(seen) - 1
    assert _found(seen, {"memory": secret[::-1]}) == [("memory", "memory")]
    assert _found(seen, {"nowhere": os.urandom(32)}) == []


# --- Ends -------------------------------------------------------------------------------------------------------------


def _streaming(enclave: Enclave) -> tuple[SealedTransport, Iterator[str]]:
    """A verified transport in the middle of a long answer."""
    transport = SealedTransport(enclave.url, enclave.policy)
    transport.verify()
    stream = stream_chat(transport, LONG, max_tokens=900, temperature=1.9, seed=1)
    next(stream)
    return transport, stream


def test_the_parent_agent_may_die_and_come_back(enclave: Enclave) -> None:
    transport, stream = _streaming(enclave)
    os.kill(enclave.pid("agent"), signal.SIGKILL)
    with pytest.raises(TruncatedResponse):
        list(stream)
    assert transport.last is None
    gone = enclave.run("verify", enclave.url, "--policy", enclave.up["policy"])
    assert gone.returncode == UndecidedError.exit_code, gone.stdout
    status = json.loads(enclave.run("status", "--json").stdout)["enclaves"]
    assert [(row["name"], row["agent"]) for row in status] == [(NAME, False)]
    words = [sys.executable, "-m", "cloister.host.agent", "--config", str(enclave.state / "host.toml")]
    Processes(enclave.state).start("agent", words, ready=30)
    # The same verified key, with no new verification: the enclave never noticed.
    key = transport.session._key
    assert "".join(stream_chat(transport, LONG, max_tokens=5))
    assert transport.session._key is key
    again = enclave.run("chat", enclave.url, "--policy", enclave.up["policy"], "--max-tokens", "5", PROMPT)
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip()
    transport.close()


def test_launch_is_checked_before_anything_starts(enclave: Enclave) -> None:
    from cloister.platforms.qemu_nitro.platform import QemuNitro

    image = enclave.state / "image" / f"{NAME}.eif"
    with pytest.raises(CloisterError) as refused:
        QemuNitro().preflight(Launch(name="x", image=image, memory_mib=64, cpus=99, cid=2, debug=True, weights=1))
    for word in ("memory_mib", "cpus", "cid", "debug"):
        assert word in refused.value.message


def test_one_changed_bit_changes_the_registers(enclave: Enclave) -> None:
    built = eif.parse((enclave.state / "image" / f"{NAME}.eif").read_bytes())
    predicted = json.loads(Path(enclave.up["measurements"]).read_text())["measurements"]
    assert {f"PCR{index}": value.hex() for index, value in built.measurements().items()} == predicted


def test_the_enclave_may_die_and_another_comes(enclave: Enclave) -> None:
    """In mid-stream: an error, never half an answer; then `cloister up` again, and the key of the dead one is no key."""
    transport, stream = _streaming(enclave)
    before = transport.session._key
    os.kill(enclave.pid("qemu"), signal.SIGKILL)
    with pytest.raises(TruncatedResponse):
        list(stream)
    assert transport.last is None
    nitro_lab.until(lambda: not enclave.run("status").stdout, seconds=20)
    with pytest.raises(CloisterError) as gone:
        list(stream_chat(transport, LONG, max_tokens=5))
    assert isinstance(gone.value, UndecidedError | TruncatedResponse | GatewayRefusedError)
    enclave.run("down", NAME)
    enclave.start("--listen", enclave.url.removeprefix("http://"))
    # The transport still holds the old key; it is refused, and the new one is verified before anything is sealed to it.
    transport.session._key = before
    assert "".join(stream_chat(transport, LONG, max_tokens=5))
    after = transport.session._key
    assert after is not None
    assert before is not None
    assert after.bundle.statement_bytes != before.bundle.statement_bytes
    assert re.search("SIMULATED", after.verdict.summary())
    transport.close()
