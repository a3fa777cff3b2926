"""The SIMULATED Trust Authority in its own process, in this one, and a TD for it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2

from cloister.platforms.local.replica import ITA_WAIVERS, ita_rules
from cloister.platforms.local.trust_authority import files
from cloister.platforms.local.trust_authority.service import AppraisalPolicy, Service
from cloister.policy.appraise import Bound
from cloister.policy.document import Policy
from cloister.policy.draft import draft_simulated
from cloister.tee.ita.client import TrustAuthority
from cloister.tee.sim import tdx
from cloister.tee.sim.tdx import Registers, SimulatedTdx
from cloister.trust.anchors import Anchor

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
REGISTERS = Registers(mrtd=b"\x0d" * 48, rtmrs=(bytes(48), b"\xa1" * 48, b"\xa2" * 48, bytes(48)))
FITS, MISFIT, UNKNOWN = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "123")
POLICIES = ((FITS, {"mrtd": "0d" * 48}), (MISFIT, {"mrtd": "0e" * 48}))
MODEL, CONFIG = "0a" * 32, "0b" * 32
B = hashlib.sha256(b"a key statement").digest()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def policy(root_pem: str, registers: Registers = REGISTERS, **changes: object) -> Policy:
    """Accepts tokens about the TD under a simulated root; `changes` replace rules."""
    waivers = {name: reason for name, reason in ITA_WAIVERS.items() if name.partition(".")[2] not in changes}
    text = draft_simulated(
        name="lab", form="ita", rules={**ita_rules(registers), **changes}, waivers=waivers, root_pem=root_pem,
        model_sha256=MODEL, config_sha256=CONFIG,
    )  # fmt: skip
    return Policy.from_toml(text.encode())


def bound(now: datetime, binding: bytes = B) -> Bound:
    return Bound(
        binding=binding, challenge=b"f" * 32, fresh=True, kid="k", scope="replica", model_id="m", model_sha256=MODEL,
        config_sha256=CONFIG, not_before=now - timedelta(minutes=1), not_after=now + timedelta(hours=1),
    )  # fmt: skip


@dataclass
class Lab:
    """A running service."""

    folder: Path
    url: str
    td: SimulatedTdx
    log: Path

    @property
    def key(self) -> str:
        return (self.folder / files.API_KEY).read_text().strip()

    @property
    def tls(self) -> str:
        return (self.folder / files.TLS_ROOT).read_text()

    @property
    def root(self) -> str:
        return (self.folder / files.ROOT).read_text()

    def client(self, **options: object) -> TrustAuthority:
        options = {"api_key": self.key, **options}
        return TrustAuthority(api=self.url, portal=self.url, tls_roots=self.tls, **options)

    def http(self) -> httpx2.Client:
        """A bare HTTP client: requests as somebody else's client sends them."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.tls)
        return httpx2.Client(base_url=self.url, verify=context, headers={"x-api-key": self.key})


@contextlib.contextmanager
def run(folder: Path, *options: str) -> Iterator[Lab]:
    """Start the service, wait until it listens, end it with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    log, policies = folder / "log", folder / "policies.json"
    policies.write_text(json.dumps([{"id": name, "registers": registers} for name, registers in POLICIES]))
    module = "cloister.platforms.local.trust_authority"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--state", str(folder), "--policies", str(policies), *options],
            stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        td = SimulatedTdx(tdx.load_or_create_root(folder / files.INTEL_ROOT), REGISTERS)
        td.publish(folder / files.PCS)
        yield Lab(folder, json.loads(line)["url"], td, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


@dataclass
class Inside:
    """The same service in this process, with a clock that tests move; `td` shares its Intel root."""

    folder: Path
    now: datetime = NOW
    quota: int = 600
    td: SimulatedTdx = field(init=False)
    service: Service = field(init=False)

    def __post_init__(self) -> None:
        root = tdx.create_root(NOW)
        self.td = SimulatedTdx(root, REGISTERS, clock=lambda: self.now)
        self.td.publish(self.folder)
        self.service = Service(
            Anchor.simulated(root.pem), self.folder, api_key="key", url="https://localhost", quota=self.quota,
            policies=[AppraisalPolicy(id=name, registers=registers) for name, registers in POLICIES],
            clock=lambda: self.now,
        )  # fmt: skip

    def body(self, held: bytes = B, nonce: dict[str, str] | None = None, **changes: object) -> dict:
        """A request as it should be; members of `tdx` and of the whole by name."""
        nonce = self.service.nonce("key") if nonce is None else nonce
        report = hashlib.sha512(base64.b64decode(nonce["val"]) + base64.b64decode(nonce["iat"]) + held).digest()
        tdx_part = {"quote": b64(self.td.quote(report)), "runtime_data": b64(held), "verifier_nonce": nonce}
        inner = {name: value for name, value in changes.items() if name in (*tdx_part, "event_log", "user_data")}
        outer = {name: value for name, value in changes.items() if name not in inner}
        return {"tdx": tdx_part | inner, "token_signing_alg": "PS384", **outer}

    def attest(self, body: dict, version: int = 2) -> bytes:
        return self.service.attest("key", json.dumps(body).encode(), version=version)["token"].encode()
