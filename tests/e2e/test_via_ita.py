"""Replicas whose evidence is a SIMULATED TDX quote, or a SIMULATED Trust Authority's token about it: real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from tests.conftest import Replica, run_replica
from tests.e2e.test_main_job import NOTE, cli
from tests.platforms.local import lab as labs

import cloister


@dataclass
class ViaIta:
    """A service and a replica that asks it."""

    service: labs.Lab
    replica: Replica


@pytest.fixture(scope="module")
def via(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ViaIta]:
    folder = tmp_path_factory.mktemp("via-ita")
    with (
        labs.run(folder / "service") as service,
        run_replica(folder / "replica", "--evidence", "ita", "--trust-authority", str(service.folder)) as replica,
    ):
        yield ViaIta(service, replica)


def _ask(replica: Replica) -> str:
    with cloister.http_client(replica.url, policy=replica.policy) as http:
        client = openai.OpenAI(base_url=f"{replica.url}/v1", api_key="none", http_client=http)
        pieces = client.chat.completions.create(
            model="cloister-notes",
            messages=[{"role": "user", "content": NOTE}],
            temperature=0,
            max_tokens=60,
            stream=True,
        )
        return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)


def test_a_sealed_streamed_chat_under_a_verified_token(via: ViaIta) -> None:
    answer = _ask(via.replica)
    assert "[NAME]" in answer
    result = cli("verify", via.replica.url, "-p", str(via.replica.policy_file), "--json")
    verdict = json.loads(result.stdout)
    assert (verdict["outcome"], verdict["simulated"], verdict["tee"]) == ("accepted", True, "ita")
    checks = {check["id"]: check["status"] for check in verdict["checks"]}
    assert {checks[name] for name in ("ita.key", "ita.signature", "ita.times", "ita.held-data")} == {"passed"}
    assert checks["policy.binding"] == checks["policy.challenge"] == checks["policy.ita.measurement"] == "passed"


def test_what_the_policy_does_not_accept(via: ViaIta, tmp_path: Path) -> None:
    text = via.replica.policy_file.read_text()
    mrtd = next(line for line in text.splitlines() if line.startswith("mrtd"))
    root = text[text.index("simulated_roots.ita") : text.index('-----END CERTIFICATE-----\n"""') + 30]
    for changed, code in (
        (text.replace(mrtd, f'mrtd = "{"0e" * 48}"'), 5),
        (text.replace('algorithm = ["PS384"]', 'algorithm = ["RS256"]'), 5),
        (text.replace("issuer = [", 'issuer = ["Intel Trust Authority"] # ['), 5),
        (text.replace(via.replica.ready["model_sha256"], "cd" * 32), 5),
        (text.replace("allow_simulated = true", "").replace(root, ""), 4),
        (text.replace("allow_simulated = true", ""), 2),
        (text.replace(root, ""), 2),
        (text.replace("simulated_roots.ita", "simulated_roots.tdx"), 2),
        (text.replace("simulated_roots.ita", "simulated_roots.snp"), 2),
    ):
        assert changed != text
        policy = tmp_path / "policy.toml"
        policy.write_text(changed)
        result = cli("verify", via.replica.url, "-p", str(policy))
        assert result.returncode == code, result.stdout + result.stderr


def test_without_the_service_there_is_no_fresh_evidence(tmp_path: Path) -> None:
    with labs.run(tmp_path / "service") as service:
        stack = run_replica(tmp_path / "replica", "--evidence", "ita", "--trust-authority", str(service.folder))
        replica = stack.__enter__()
    try:
        result = cli("verify", replica.url, "-p", str(replica.policy_file))
        assert result.returncode == 6, result.stdout + result.stderr
    finally:
        stack.__exit__(None, None, None)
    assert service.key not in replica.log.read_text()


def test_a_replica_with_a_simulated_quote(tmp_path: Path) -> None:
    with run_replica(tmp_path, "--evidence", "tdx") as replica:
        result = cli("verify", replica.url, "-p", str(replica.policy_file), "--json")
        verdict = json.loads(result.stdout)
        assert (verdict["outcome"], verdict["simulated"], verdict["tee"]) == ("accepted", True, "tdx")
        assert "[NAME]" in _ask(replica)


def test_serve_wants_a_service_exactly_where_it_needs_one(tmp_path: Path) -> None:
    for options in (["--evidence", "ita"], ["--trust-authority", str(tmp_path)], ["--evidence", "snp"]):
        assert cli("serve", *options).returncode == 2
    assert cli("serve", "--evidence", "ita", "--trust-authority", str(tmp_path)).returncode == 2


def test_the_demo_through_the_service() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cloister", "demo", "--platform", "local", "--via", "ita"], capture_output=True,
        text=True, timeout=100, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for line in ("SIMULATED, NOT INTEL", "ita.signature", "policy.binding", "SIMULATED, NOT A TEE", "found none"):
        assert line in result.stdout
    assert "[NAME]" in result.stdout


def test_the_demo_knows_no_other_service() -> None:
    assert cli("demo", "--via", "nras").returncode == 2
    assert cli("demo", "--platform", "aws-nitro").returncode == 2
