"""`cloister collateral`: what a report needs, into a folder that `cloister verify` reads."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.tee.snp import signer
from tests.trust.services import Call, Kds, Reply, Service, serving
from typer.testing import CliRunner, Result

from cloister.cli.main import app
from cloister.tee.snp.evidence import Report
from cloister.trust.collateral import Collateral

NOW = datetime.now(UTC).replace(microsecond=0)
#: Certificates and lists that are in force on this machine's clock, which is the command line's.
AROUND = {"start": NOW - timedelta(days=2), "end": NOW + timedelta(days=2)}
POLICY = """
schema = "cloister-policy/1"
name = "a report that AMD hardware signed"
[tee]
accept = ["snp"]
[snp]
measurement = ["{measurement}"]
products = ["Genoa"]
"""


@pytest.fixture
def kds() -> Kds:
    kds = Kds()
    kds.crl = functools.partial(signer.revocations, **AROUND)
    kds.vcek = functools.partial(signer.endorsement, **AROUND)
    kds.intermediate = functools.partial(signer.intermediate, **AROUND)
    return kds


@pytest.fixture
def service(kds: Kds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving(kds) as running:
        yield running


def _run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def _fetch(service: Service, evidence: Path, out: Path, *more: str) -> Result:
    bases = [word for kind in ("amd-vcek", "amd-ask", "amd-crl") for word in ("--base-url", f"{kind}={service.url}")]
    return _run("collateral", "fetch", evidence, "--tee", "snp", "--out", out, *bases, *more)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.bin"
    path.write_bytes(signer.report())
    return path


def test_fetch_offline_and_list(service: Service, report: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = _fetch(service, report, out)
    assert done.exit_code == 0, done.output
    names = ["amd-ask.0", "amd-crl.0", "amd-vcek.0"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert sorted(Path(line).name for line in done.stdout.split()) == names
    assert len(Collateral.from_folder(out).items) == 3
    (out / "amd-crl.0").unlink()
    # What an earlier run left, and what is somebody else's.
    (out / "amd-vcek.1").write_bytes(b"old")
    (out / "amd-vcek.mine").write_bytes(b"mine")
    asked = len(service.calls)
    assert _fetch(service, report, out, "--offline").exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == [*names, "amd-vcek.mine"]
    assert len(service.calls) == asked
    listed = json.loads(_run("collateral", "list", "--json").stdout)
    assert sorted(entry["kind"] for entry in listed) == ["amd-ask", "amd-crl", "amd-vcek"]
    assert f"until {AROUND['end']:%Y-%m-%d}" in _run("collateral", "list").stdout


def test_what_is_missing_is_undecided_and_the_rest_is_kept(
    service: Service, kds: Kds, report: Path, tmp_path: Path
) -> None:
    service.answer = lambda call: Reply(403) if call.route.endswith("crl") else kds(call)
    done = _fetch(service, report, tmp_path / "out")
    assert done.exit_code == 6
    assert "amd-crl" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["amd-ask.0", "amd-vcek.0"]


def test_an_outage_does_not_empty_the_folder(service: Service, report: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _fetch(service, report, out).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for path in (tmp_path / "cache").rglob("*.item"):
        path.unlink()
    assert _fetch(service, report, out, "--offline").exit_code == 6
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (("--base-url", "amd-vcek"), 2),
        (("--base-url", "tcg-event-log=https://127.0.0.1"), 2),
        (("--base-url", "jwks=http://example.org"), 2),
        (("--offline", "--refresh"), 2),
        (("--tee", "nitro"), 3),
        (("--tee", "none"), 2),
    ],
)
def test_wrong_words(service: Service, report: Path, tmp_path: Path, more: tuple[str, ...], code: int) -> None:
    done = _run("collateral", "fetch", report, "--tee", "snp", "--out", tmp_path / "out", *more)
    assert done.exit_code == code, done.output
    assert service.calls == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"\x00" * 1184])
def test_evidence_that_is_none_asks_nobody(service: Service, report: Path, tmp_path: Path, content: bytes) -> None:
    report.write_bytes(content)
    assert _fetch(service, report, tmp_path / "out").exit_code == 3
    assert service.calls == []


def test_a_real_report_verifies_with_what_was_fetched(service: Service, vectors: Path, tmp_path: Path) -> None:
    """A report and certificates that AMD hardware and AMD signed; only the service in between is not AMD's."""
    real = vectors / "snp"
    evidence, out, policy = real / "lunal_genoa_v5_report.bin", tmp_path / "out", tmp_path / "policy.toml"
    report = Report.parse(evidence.read_bytes())

    def answer(call: Call) -> Reply:
        if call.route == f"/vcek/v1/Genoa/{report.chip_id.hex()}":
            return Reply(body=(real / "lunal_genoa_vcek.der").read_bytes())
        files = {"/vcek/v1/Genoa/cert_chain": "amd_ask_ark_genoa.pem", "/vcek/v1/Genoa/crl": "amd_crl_Genoa.der"}
        return Reply(body=(real / files[call.route]).read_bytes()) if call.route in files else Reply(404)

    service.answer = answer
    done = _fetch(service, evidence, out)
    # The stored list ended on 2026-10-31; nothing that has ended is handed out.
    stale = datetime(2026, 10, 31, 20, 30, tzinfo=UTC) < NOW
    assert done.exit_code == (6 if stale else 0), done.output
    assert ("expired" in done.stderr) is stale
    policy.write_text(_policy(report))
    words = (
        "verify",
        evidence,
        "-p",
        policy,
        "--tee",
        "snp",
        "--unbound",
        "only its certificates are of interest",
        "--json",
    )
    without = _run(*words)
    assert without.exit_code == 6, without.output
    verdict = json.loads(_run(*words, "--collateral", out).stdout)
    checks = {check["id"]: check["status"] for check in verdict["checks"]}
    assert all(status == "passed" for name, status in checks.items() if name.startswith("snp."))
    assert verdict["outcome"] == "accepted", verdict


def _policy(report: Report) -> str:
    from cloister.tee import registry

    text = POLICY.format(measurement=report.measurement.hex())
    text += '[freshness]\nmax_age_seconds = 300\nmax_clock_skew_seconds = 60\nreverify_after_seconds = 3600\nchallenge = "required"\n'
    text += f'[model]\nsha256 = ["{"0a" * 32}"]\n[config]\nsha256 = ["{"0b" * 32}"]\n[key]\nscope = ["replica"]\n'
    for rule in registry.get("snp").rules:
        if rule.waivable:
            text += f'[[waive]]\nrule = "snp.{rule.name}"\nreason = "not what this test is about"\n'
    return text
