"""Evidence of Azure VMs under roots of our own: what must fail, and what the rules decide."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA1
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tee.azure import common
from tests.tee.azure import signer as s

from cloister.errors import (
    CloisterError,
    MalformedError,
    NotGenuineError,
    PolicyDocumentError,
    RefusedError,
    UndecidedError,
)
from cloister.policy.appraise import Expected, appraise_evidence
from cloister.policy.document import Policy
from cloister.tee import azure as folder
from cloister.tee import registry
from cloister.tee.azure import maa, maa_rules, rules, verify
from cloister.tee.azure.evidence import Evidence, pack
from cloister.tee.azure.hcl import HclReport
from cloister.tee.evidence import Offers
from cloister.trust.collateral import Collateral, Item
from cloister.wire import toml

FORMAT = registry.get("azure-vtpm")
VMS = (s.Vm(), s.Vm(tdx=True))
BOOT = "\n".join(f'pcr{index} = "{s.PCRS[index].hex()}"' for index in rules.BOOT_CHAIN)


@pytest.mark.parametrize("vm", VMS, ids=("snp", "tdx"))
def test_good_evidence(vm: s.Vm) -> None:
    claims = vm.verify(*s.ak_items())
    assert claims.genuine
    assert not claims.debug
    assert [each.tee for each in claims.flat()] == ["azure-vtpm", "tdx" if vm.tdx else "snp"]
    assert claims.measurements == {f"pcr{index}": value.hex() for index, value in s.PCRS.items()}
    assert claims.chain == ("CN=root", "CN=intermediate", "CN=vm.ConfidentialVM")
    FORMAT.bind(claims, s.BINDING, None)


@pytest.mark.parametrize("vm", VMS, ids=("snp", "tdx"))
@pytest.mark.parametrize(("version", "hash_type"), [(1, 1), (2, 2), (1, 3)])
def test_every_version_and_hash(vm: s.Vm, version: int, hash_type: int) -> None:
    assert vm.but(version=version, hash_type=hash_type).verify().genuine


# Binding


@pytest.mark.parametrize("extra", [b"", s.BINDING[:-1], s.BINDING + b"\x00", s.BINDING.ljust(48, b"\x00"), b"C" * 32])
def test_the_nonce_is_compared_whole(extra: bytes) -> None:
    claims = s.Vm(quote=s.quote(extra)).verify()
    assert claims.nonce == extra
    with pytest.raises(NotGenuineError, match="bind"):
        FORMAT.bind(claims, s.BINDING, None)


def test_user_data_does_not_bind() -> None:
    """An old quote beside new runtime data: the attestation key outlives a boot."""
    data = s.runtime_data(user_data=s.BINDING + bytes(32))
    claims = s.Vm(data=data, quote=s.quote(b"an earlier nonce")).verify()
    assert claims.user_data == s.BINDING + bytes(32)
    with pytest.raises(NotGenuineError, match="bind"):
        FORMAT.bind(claims, s.BINDING, None)
    with pytest.raises(NotGenuineError, match="bind"):
        FORMAT.bind(s.Vm(data=data, quote=None).verify(), s.BINDING, None)


# Runtime data


@pytest.mark.parametrize("vm", VMS, ids=("snp", "tdx"))
def test_runtime_data_that_the_hardware_did_not_sign(vm: s.Vm) -> None:
    other = vm.but(data=s.runtime_data(ak="evil"), quote=s.quote(ak="evil"))
    with pytest.raises(NotGenuineError, match="did not sign this runtime data"):
        other.but(report_data=vm.digest).verify()
    # The same values, written in another way, are other bytes.
    with pytest.raises(NotGenuineError, match="did not sign this runtime data"):
        vm.but(data=vm.data.replace(b", ", b","), report_data=vm.digest).verify()
    for wrong in (vm.digest[:32] + b"\x01" * 32, vm.digest[:63] + b"\x01", bytes(64), b"\x00" + vm.digest[:63]):
        with pytest.raises(NotGenuineError, match="did not sign this runtime data"):
            vm.but(report_data=wrong).verify()


def test_the_hash_is_the_one_that_is_named() -> None:
    vm = s.Vm(hash_type=2)
    with pytest.raises(NotGenuineError, match="did not sign"):
        vm.but(hash_type=1, report_data=vm.digest).verify()


def test_a_td_quote_of_another_report() -> None:
    vm, other = s.Vm(tdx=True), s.Vm(tdx=True, data=s.runtime_data(vmUniqueId="0" * 8))
    mixed = pack(hcl_report=vm.blob, tpm_quote=vm.quote, td_quote=other.world.quote)
    with pytest.raises(NotGenuineError, match="another TD report"):
        vm.verify(evidence=mixed)


def test_debug_of_the_hardware_is_the_evidences() -> None:
    claims = s.Vm(report={"policy": 0xB001F}).verify()
    assert claims.debug
    with pytest.raises(RefusedError, match="debug|DEBUG"):
        s.Vm(tdx=True, report={"attributes": 1 | 1 << 28}).verify()


@pytest.mark.parametrize("vm", VMS, ids=("snp", "tdx"))
def test_the_hardware_must_be_genuine(vm: s.Vm) -> None:
    foreign = vm.anchors() | {"snp": (s.amd.root("Genoa", "other"),), "tdx": (s.intel.World(tdx=True).anchor,)}
    error, checks = common.checks("azure-vtpm", vm.evidence(), *vm.items(), anchors=foreign, now=s.NOW)
    assert isinstance(error, NotGenuineError)
    assert checks["azure-vtpm.runtime-data"].status == "not-reached"
    error, _ = common.checks("azure-vtpm", vm.evidence(), anchors=vm.anchors(), now=s.NOW)
    assert isinstance(error, UndecidedError)


# The report's shape


def _blob(
    *, tdx: bool = False, at: int | None = None, to: bytes = b"", data: bytes | None = None, size: int = 2600
) -> bytes:
    vm = s.Vm(tdx=tdx) if data is None else s.Vm(tdx=tdx, data=data)
    blob = bytearray(vm.blob.rstrip(b"\x00").ljust(size, b"\x00"))
    if at is not None:
        blob[at : at + len(to)] = to
    return bytes(blob)


@pytest.mark.parametrize(
    "blob",
    [
        b"", b"HCLA", _blob()[:-300], _blob(size=9000), _blob() [1:], _blob(at=0, to=b"HCLB"), _blob(at=4, to=b"\x00"), _blob(at=4, to=b"\x03"),
        _blob(at=8, to=b"\x00\x00"), _blob(at=0x10, to=b"\x01"), _blob(at=0x1F, to=b"\x01"), _blob(at=0x4C0, to=b"\x00\x00"),
        _blob(at=0x4C4, to=b"\x02"), _blob(at=0x4C8, to=b"\x03"), _blob(at=0x4CC, to=b"\x00"), _blob(at=0x4CC, to=b"\x04"),
        _blob(at=0x4D0, to=b"\xff\xff"), _blob(at=2599, to=b"\x01"), _blob(tdx=True, at=0x20, to=b"\x00"),
        _blob(tdx=True, at=0x420, to=b"\x01"), _blob(tdx=True, at=0x4BF, to=b"\x01"),
    ],
)  # fmt: skip
def test_malformed_reports(blob: bytes) -> None:
    with pytest.raises(MalformedError):
        HclReport.parse(blob)


def _runtime(**changes: object) -> bytes:
    members = json.loads(s.runtime_data())
    return json.dumps({name: value for name, value in (members | changes).items() if value is not ...}).encode()


AK = s.jwk(s.key("ak"), "HCLAkPub")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", _runtime(keys=...), _runtime(keys={}), _runtime(keys=[]), _runtime(keys=[AK, AK]), _runtime(keys=[1]),
        _runtime(keys=[AK | {"kid": "HCLEkPub"}]), _runtime(keys=[AK | {"kty": "EC"}]), _runtime(keys=[AK | {"n": AK["n"] + "="}]),
        _runtime(keys=[AK | {"n": 5}]), _runtime(keys=[AK | {"e": "AA"}]), _runtime(keys=[AK | {"n": ""}]), _runtime(**{"vm-configuration": ...}),
        _runtime(**{"vm-configuration": {"secure-boot": "true"}}), _runtime(**{"vm-configuration": {"vmUniqueId": 1}}),
        _runtime(**{"user-data": "00"}), _runtime(**{"user-data": "0g" * 64}), _runtime(**{"user-data": None}), _runtime() + b"\x00",
        _runtime()[:-1] + b', "keys": []}',
    ],
)  # fmt: skip
def test_malformed_runtime_data(data: bytes) -> None:
    with pytest.raises(MalformedError):
        HclReport.parse(_blob(data=data, size=max(2600, 0x4D4 + len(data))))


def test_what_runtime_data_may_lack_and_add() -> None:
    vm = s.Vm(
        data=_runtime(**{"user-data": ..., "vm-configuration": {"filtered-vpci-devices-allowed": False}, "new": 1})
    )
    claims = vm.verify()
    assert claims.user_data is None
    # What is not said is neither yes nor no.
    for want in ("required", "forbidden"):
        with pytest.raises(RefusedError, match="secure_boot"):
            common.rule(
                claims,
                "vm_configuration",
                f'[vm_configuration]\nsecure_boot = "{want}"\ntpm_enabled = "any"\nconsole_enabled = "any"',
            )


# The envelope


def _members(**changes: object) -> bytes:
    members = json.loads(s.Vm().evidence())
    return json.dumps({name: value for name, value in (members | changes).items() if value is not ...}).encode()


def _quote_members(**changes: object) -> bytes:
    members = json.loads(s.Vm().evidence())["tpm_quote"]
    return _members(tpm_quote={name: value for name, value in (members | changes).items() if value is not ...})


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", _members() + b"x", _members(version=2), _members(version=...), _members(hcl_report=...), _members(tpm_quote=...),
        _members(new=1), _members(td_quote="AAAA"), _members(td_quote=None), _members(tpm_quote=[]), _quote_members(message=...),
        _quote_members(message="AA"), _quote_members(signature=...), _quote_members(pcrs=[]), _quote_members(new=1),
        _quote_members(pcrs={"24": "00" * 32}), _quote_members(pcrs={"00": "00" * 32}), _quote_members(pcrs={"-1": "00" * 32}),
        _quote_members(pcrs={"0": "00" * 31}), _quote_members(pcrs={"0": "AA" * 32}), _quote_members(pcrs={"0": 0}),
        _members().replace(b'"version": 1', b'"version": 1, "version": 1'), _members() + b" " * 70_000,
        pack(hcl_report=s.Vm(tdx=True).blob, tpm_quote=None),
    ],
)  # fmt: skip
def test_malformed_envelopes(data: bytes) -> None:
    with pytest.raises(MalformedError):
        Evidence.parse(data)


# The quote


def _with(message: bytes, **changes: object) -> s.TpmQuote:
    return s.TpmQuote(**{"message": message, "signature": s.sign(message), "pcrs": s.PCRS} | changes)


@pytest.mark.parametrize(
    ("quote", "error"),
    [
        (_with(s.message(magic=0xFF544348)), MalformedError),
        (_with(s.message(kind=0x8017)), MalformedError),  # a certified creation is not a quote
        (_with(s.message() + b"\x00"), MalformedError),
        (_with(s.message()[:-1]), MalformedError),
        (_with(s.message(bank=0x0004)), NotGenuineError),
        (_with(s.message(banks=2)), NotGenuineError),
        (_with(s.message(banks=0)), NotGenuineError),
        (_with(s.message(digest=bytes(32))), NotGenuineError),
        (_with(s.message(digest=b"")), NotGenuineError),
        (_with(s.message(), pcrs={index: value for index, value in s.PCRS.items() if index != 12}), NotGenuineError),
        (_with(s.message(), pcrs={**s.PCRS, 4: bytes(32)}), NotGenuineError),
        (_with(s.message(), pcrs={}), NotGenuineError),
        (_with(s.message(pcrs={}), pcrs={}), NotGenuineError),
        (_with(s.message(pcrs={4: bytes(32)})), NotGenuineError),
        (_with(s.message(), signature=s.sign(s.message(), digest=SHA1())), NotGenuineError),
        (_with(s.message(), signature=s.sign(s.message(), pss=True)), NotGenuineError),
        (_with(s.message(), signature=s.sign(s.message(), ak="ek")), NotGenuineError),
        (_with(s.message(), signature=b""), NotGenuineError),
        (_with(s.message(), signature=s.sign(s.message(b"another"))), NotGenuineError),
        (_with(s.message(), signature=s.sign(s.message()) + b"\x00"), NotGenuineError),
    ],
)  # fmt: skip
def test_wrong_quotes(quote: s.TpmQuote, error: type[CloisterError]) -> None:
    with pytest.raises(error):
        s.Vm(quote=quote).verify()


def test_a_short_attestation_key_is_refused() -> None:
    with pytest.raises(NotGenuineError, match="fit"):
        s.Vm(
            data=_runtime(keys=[s.jwk(s.key("short", 1024), "HCLAkPub")]),
            quote=_with(s.message(), signature=bytes(128)),
        ).verify()


# The attestation key's certificate


@pytest.mark.parametrize(
    ("ders", "error"),
    [
        ((s.ak_certificate(public="ek"), s.intermediate()), "attestation key"),
        ((s.intermediate(),), "attestation key"),
        ((s.ak_certificate(), s.intermediate(signer="other")), "signature"),
        ((s.ak_certificate(signer="other"), s.intermediate()), "signature"),
        ((s.ak_certificate(end=s.NOW - timedelta(days=1)), s.intermediate()), "expired"),
        ((s.ak_certificate(start=s.NOW + timedelta(days=1)), s.intermediate()), "not valid yet"),
        ((s.ak_certificate(), s.intermediate(end=s.NOW - timedelta(seconds=1))), "expired"),
        ((s.ak_certificate(), s.intermediate(ca=False)), "may not issue"),
        ((s.ak_certificate(ca=True), s.intermediate()), "authority|so long a chain"),
    ],
)  # fmt: skip
def test_certificates_that_do_not_hold(ders: tuple[bytes, ...], error: str) -> None:
    with pytest.raises(NotGenuineError, match=error):
        s.Vm().verify(*s.ak_items(*ders))


def test_certificates_of_nv_areas_and_missing_ones() -> None:
    good = s.ak_certificate()
    claims = s.Vm().verify(*s.ak_items(good.ljust(4096, b"\x00"), s.intermediate(signer="other"), s.intermediate()))
    assert common.rule(claims, "ak_certificate", 'ak_certificate = "required"') == "CN=vm.ConfidentialVM"
    for wrong in (good + b"\x01", good.ljust(4095, b"\x00") + b"\x01", good[:-1], b"", b"\x30\x03", b"\x30\x82"):
        with pytest.raises(MalformedError):
            s.Vm().verify(*s.ak_items(wrong, s.intermediate()))
    with pytest.raises(UndecidedError, match="between"):
        s.Vm().verify(*s.ak_items(good))
    with pytest.raises(UndecidedError, match="between"):
        s.Vm().verify(
            *s.ak_items(good, s.certificate("intermediate", "elsewhere"), s.certificate("elsewhere", "elsewhere"))
        )


# Event logs


def _logged() -> tuple[s.Vm, bytes]:
    pcrs = s.PCRS | {4: s.extended(b"shim", b"grub"), 9: s.extended(b"kernel")}
    return s.Vm(quote=s.quote(pcrs=pcrs)), s.event_log([(4, b"shim"), (9, b"kernel"), (4, b"grub"), (5, b"other")])


def test_an_event_log_counts_where_it_replays() -> None:
    vm, log = _logged()
    claims = vm.verify(Item("tcg-event-log", log))
    assert common.rule(claims, "event_log", 'event_log = ["pcr4", "pcr9"]') == "pcr4, pcr9"
    for names in ('["pcr5"]', '["pcr4", "pcr5"]', '["pcr8"]'):
        with pytest.raises(RefusedError, match="explains"):
            common.rule(claims, "event_log", f"event_log = {names}")


@pytest.mark.parametrize("vm", VMS, ids=("snp", "tdx"))
@pytest.mark.parametrize(
    "log", [b"\x00" * 100, b"[]", b"{}", b"\x04\x00\x00\x00\x04\x00\x00\x00" + bytes(24), _logged()[1][:-3]]
)
def test_a_log_of_another_kind_explains_nothing_and_harms_nothing(vm: s.Vm, log: bytes) -> None:
    claims = vm.verify(Item("tcg-event-log", log))
    with pytest.raises(RefusedError, match="explains"):
        common.rule(claims, "event_log", 'event_log = ["pcr4"]')


def test_a_log_without_a_quote_explains_nothing() -> None:
    claims = s.Vm(quote=None).verify(Item("tcg-event-log", _logged()[1]))
    with pytest.raises(RefusedError, match="explains"):
        common.rule(claims, "event_log", 'event_log = ["pcr4"]')


# Rules


def test_measurement() -> None:
    claims = s.Vm().verify()
    assert common.rule(claims, "measurement", f'[[measurement]]\n{BOOT}\nlabel = "2026.1"') == "2026.1"
    wrong = BOOT.replace(s.PCRS[9].hex(), "ee" * 32)
    assert common.rule(claims, "measurement", f"[[measurement]]\n{wrong}\n[[measurement]]\n{BOOT}")
    with pytest.raises(RefusedError, match="PCR 9"):
        common.rule(claims, "measurement", f"[[measurement]]\n{wrong}")
    # A register that the quote does not cover has no value, not even zero.
    partial = {index: value for index, value in s.PCRS.items() if index != 8}
    with pytest.raises(RefusedError, match="PCR 8"):
        common.rule(s.Vm(quote=s.quote(pcrs=partial)).verify(), "measurement", f"[[measurement]]\n{BOOT}")
    with pytest.raises(RefusedError, match="no TPM quote"):
        common.rule(s.Vm(quote=None).verify(), "measurement", f"[[measurement]]\n{BOOT}")


@pytest.mark.parametrize(
    "text",
    [
        *("[[measurement]]\n" + re.sub(rf'pcr{index} = "\w+"', "", BOOT) for index in rules.BOOT_CHAIN),
        f"[[measurement]]\n{BOOT}\npcr24 = \"{'00' * 32}\"",
        "[[measurement]]\n" + BOOT.replace(s.PCRS[4].hex(), "00" * 32),
        "[[measurement]]\n" + BOOT.replace(s.PCRS[4].hex(), "0" * 63),
        'event_log = ["pcr24"]',
        "event_log = []",
        '[vm_configuration]\nsecure_boot = "required"',
        '[vm_configuration]\nsecure_boot = true\ntpm_enabled = "any"\nconsole_enabled = "any"',
        'vm_unique_id = ["me"]',
        'ak_certificate = "waived"',
    ],
)  # fmt: skip
def test_rules_that_cannot_be_read(text: str) -> None:
    table = toml.parse(text.encode(), limit=10_000)
    with pytest.raises(PolicyDocumentError):
        _read_all(table)


def _read_all(table: toml.Table) -> None:
    for rule in rules.RULES:
        rule.read(table)
    table.done()


def test_vm_configuration_and_identity() -> None:
    claims = s.Vm().verify()
    table = '[vm_configuration]\nsecure_boot = "{}"\ntpm_enabled = "required"\nconsole_enabled = "{}"'
    assert "secure_boot" in common.rule(claims, "vm_configuration", table.format("required", "any"))
    for words in (("forbidden", "any"), ("required", "forbidden")):
        with pytest.raises(RefusedError):
            common.rule(claims, "vm_configuration", table.format(*words))
    off = s.Vm(data=s.runtime_data(secure_boot=False, console_enabled=False)).verify()
    assert common.rule(off, "vm_configuration", table.format("any", "forbidden")) == "tpm_enabled"
    with pytest.raises(RefusedError, match="secure_boot"):
        common.rule(off, "vm_configuration", table.format("required", "any"))
    # Written in capitals by some hosts, in small letters by others.
    for name in (s.VM["vmUniqueId"], s.VM["vmUniqueId"].lower()):
        common.rule(claims, "vm_unique_id", f'vm_unique_id = ["{name}"]')
    with pytest.raises(RefusedError, match="none that the policy names"):
        common.rule(claims, "vm_unique_id", f'vm_unique_id = ["{"0" * 8}-0000-0000-0000-{"0" * 12}"]')
    with pytest.raises(UndecidedError):
        common.rule(claims, "ak_certificate", 'ak_certificate = "required"')


POLICY = f"""schema = "cloister-policy/1"
name = "azure"
[tee]
accept = ["azure-vtpm"]
inside = ["snp"]
[[azure-vtpm.measurement]]
{BOOT}
label = "our image"
[azure-vtpm]
ak_certificate = "required"
[azure-vtpm.vm_configuration]
secure_boot = "required"
tpm_enabled = "required"
console_enabled = "any"
[snp]
measurement = ["{"22" * 48}"]
products = ["Genoa"]
vmpl = 0
[freshness]
max_age_seconds = 300
max_clock_skew_seconds = 60
reverify_after_seconds = 3600
challenge = "required"
[model]
sha256 = ["{"0a" * 32}"]
[config]
sha256 = ["{"0b" * 32}"]
[key]
scope = ["replica"]
"""


def _policy() -> Policy:
    theirs = {"azure-vtpm": rules.RULES, "snp": registry.get("snp").rules}
    stated = {"measurement", "ak_certificate", "vm_configuration", "products", "vmpl"}
    waived = [f"{name}.{rule.name}" for name, all_ in theirs.items() for rule in all_ if rule.name not in stated]
    text = POLICY + "".join(f'[[waive]]\nrule = "{name}"\nreason = "not part of this test"\n' for name in waived)
    return replace(Policy.from_toml(text.encode()), anchors=s.Vm().anchors())


def _appraise(vm: s.Vm, *more: Item) -> object:
    expected = Expected(user_data=bytes(64), nonce=s.BINDING)
    offers = Offers.one(FORMAT.media_type, vm.evidence())
    return appraise_evidence(offers, expected, _policy(), now=s.NOW, collateral=Collateral((*vm.items(), *more)))


def test_a_policy_appraises_the_envelope_and_what_is_in_it() -> None:
    verdict = _appraise(s.Vm(), *s.ak_items())
    order = [check.id for check in verdict.checks]
    assert order.index("azure-vtpm.hardware") < order.index("snp.report") < order.index("azure-vtpm.runtime-data")
    status = {check.id: check.status for check in verdict.checks}
    assert status["policy.azure-vtpm.measurement"] == status["policy.snp.measurement"] == "passed"
    assert status["policy.azure-vtpm.event_log"] == "waived"
    with pytest.raises(RefusedError, match="debug"):
        _appraise(s.Vm(report={"policy": 0xB001F}), *s.ak_items())
    with pytest.raises(RefusedError, match="launch measurement"):
        _appraise(s.Vm(report={"measurement": b"\x01" * 48}), *s.ak_items())
    with pytest.raises(RefusedError, match="envelops"):
        _appraise(s.Vm(tdx=True), *s.ak_items())
    with pytest.raises(UndecidedError, match="azure-ak"):
        _appraise(s.Vm())
    with pytest.raises(PolicyDocumentError, match="holes"):
        Policy.from_toml(POLICY.encode())


@given(
    st.binary(max_size=400)
    | st.builds(lambda at, to: _blob(at=at, to=to), st.integers(0, 2500), st.binary(min_size=1, max_size=8))
)
@settings(max_examples=60)
def test_only_our_errors_leave_the_parser(data: bytes) -> None:
    with contextlib.suppress(CloisterError):
        HclReport.parse(data)
    encoded = base64.urlsafe_b64encode(data).decode().rstrip("=")
    for changed in (_members(hcl_report=encoded), _quote_members(message=encoded), data):
        with contextlib.suppress(CloisterError):
            s.Vm().verify(evidence=changed)


def test_the_page_numbers_what_the_code_numbers() -> None:
    page = (Path(folder.__file__).parent / "README.md").read_text()
    numbered = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    vtpm = [title for _, title in verify.CHECKS] + [rule.title for rule in rules.RULES]
    tokens = [title for _, title in maa.CHECKS] + [rule.title for rule in maa_rules.RULES]
    assert numbered == [title.partition(".")[0] for title in (*vtpm, *tokens)]
