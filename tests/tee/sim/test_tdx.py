"""The simulated TD: its quotes pass the one verifier under its own root, and nowhere else."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.platforms.local.lab import CONFIG, MODEL, REGISTERS, B, bound

from cloister.errors import NotGenuineError, RefusedError, UndecidedError
from cloister.platforms.local import replica
from cloister.platforms.local.replica import TDX_WAIVERS, tdx_rules
from cloister.policy.appraise import appraise
from cloister.policy.document import Policy
from cloister.policy.draft import draft_simulated
from cloister.tee.evidence import Offers
from cloister.tee.sim import tdx
from cloister.tee.sim.measure import extend
from cloister.tee.sim.tdx import Registers, SimulatedTdx

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
ROOT = tdx.create_root(NOW)


def _policy(root: str = ROOT.pem, registers: Registers = REGISTERS) -> Policy:
    text = draft_simulated(
        name="td", form="tdx", rules=tdx_rules(registers), waivers=TDX_WAIVERS, root_pem=root, model_sha256=MODEL,
        config_sha256=CONFIG,
    )  # fmt: skip
    return Policy.from_toml(text.encode())


def test_a_quote_is_accepted_under_its_root_and_simulated() -> None:
    offers = SimulatedTdx(ROOT, REGISTERS, clock=lambda: NOW).offer(B, b"f" * 32)
    verdict = appraise(offers, bound(NOW), _policy(), now=NOW)
    assert (verdict.accepted, verdict.simulated, verdict.tee) == (True, True, "tdx")
    assert dict(verdict.measurements) == REGISTERS.named()
    assert all("SIMULATED" in subject for subject in verdict.chain)


def test_it_is_refused_by_default_and_under_another_root() -> None:
    offers = SimulatedTdx(ROOT, REGISTERS, clock=lambda: NOW).offer(B, None)
    text = _policy().to_toml()
    start, end = text.index("# SIMULATED"), text.index('-----END CERTIFICATE-----\n"""') + 30
    strict = Policy.from_toml((text[:start] + text[end:]).encode())
    assert not strict.allow_simulated
    for rules in (strict, _policy(tdx.create_root(NOW).pem)):
        with pytest.raises(NotGenuineError, match="not trusted here"):
            appraise(offers, bound(NOW), rules, now=NOW)


def test_another_key_and_other_code_are_refused() -> None:
    offers = SimulatedTdx(ROOT, REGISTERS, clock=lambda: NOW).offer(B, None)
    with pytest.raises(NotGenuineError, match="key statement"):
        appraise(offers, bound(NOW, b"C" * 32), _policy(), now=NOW)
    with pytest.raises(RefusedError):
        other = Registers(mrtd=REGISTERS.mrtd, rtmrs=(bytes(48), b"\xa1" * 48, b"\xa3" * 48, bytes(48)))
        appraise(offers, bound(NOW), _policy(registers=other), now=NOW)


def test_without_its_collateral_nothing_is_decided() -> None:
    offers = SimulatedTdx(ROOT, REGISTERS, clock=lambda: NOW).offer(B, None)
    with pytest.raises(UndecidedError):
        appraise(Offers(offers=offers.offers), bound(NOW), _policy(), now=NOW)


def test_collateral_is_made_anew_after_a_day_and_fits_old_quotes() -> None:
    now = [NOW]
    td = SimulatedTdx(ROOT, REGISTERS, clock=lambda: now[0])
    old = td.offer(B, None)
    now[0] += timedelta(days=1)
    assert td.collateral() == old.collateral
    now[0] += timedelta(seconds=1)
    new = td.collateral()
    assert new != old.collateral
    assert appraise(Offers(offers=old.offers, collateral=new), bound(now[0]), _policy(), now=now[0]).accepted


def test_the_root_is_kept_and_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "root.pem"
    first = tdx.load_or_create_root(path)
    assert tdx.load_or_create_root(path).pem == first.pem
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_local_replicas_registers_are_those_of_what_runs() -> None:
    registers, pcrs = replica.measure_td(), replica.measure()
    assert registers.rtmrs[1:3] == (pcrs[1], pcrs[2])
    assert extend(registers.mrtd) == pcrs[1]


def test_report_data_has_64_bytes() -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        SimulatedTdx(ROOT, REGISTERS).quote(bytes(32))
