"""What needs a valid signature to be wrong: quotes and collateral under a root of this test."""

from __future__ import annotations

import json
import struct
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tee.dcap.signer import (
    NOW,
    World,
    claims,
    crl,
    enclave_report,
    issue,
    pem,
    raw,
    refusal,
    td_report,
    verify,
)

from cloister.errors import CloisterError, MalformedError, NotGenuineError, RefusedError, UndecidedError
from cloister.tee import binding, registry
from cloister.trust.collateral import Item
from cloister.trust.dcap import qvl
from cloister.trust.dcap.quote import INTEL, Quote

TDX, SGX = World(tdx=True), World(tdx=False, version=3)
WORLDS = pytest.mark.parametrize("world", [TDX, World(tdx=True, version=5), SGX], ids=["tdx-4", "tdx-5", "sgx-3"])


@WORLDS
def test_a_whole_one_is_accepted(world: World) -> None:
    found = claims(world)
    assert (found.genuine, found.debug, found.nonce, found.signed_at) == (True, False, None, None)
    assert found.facts["tcb_status"] == "UpToDate"
    assert "SIMULATED SGX PCK Certificate" in found.chain[-1]


def test_a_td_report_of_1_0_in_a_quote_of_version_5() -> None:
    assert claims(TDX.but(version=5, body=td_report())).genuine


@pytest.mark.parametrize("version", [4, 5])
def test_an_sgx_quote_of_a_newer_version_is_parsed_but_undecided(version: int) -> None:
    error = refusal(SGX.but(version=version))
    assert isinstance(error, UndecidedError)
    assert "version" in error.message


@WORLDS
@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"bind": False}, NotGenuineError, "does not vouch"),
        ({"qe": {"mrsigner": b"\x01" * 32}}, NotGenuineError, "MRSIGNER"),
        ({"qe": {"prodid": 7}}, NotGenuineError, "ISVPRODID"),
        ({"qe": {"attributes": 0x17}}, NotGenuineError, "the quoting enclave runs in debug mode"),
        ({"qe": {"misc": 1}}, NotGenuineError, "MISCSELECT"),
        ({"qe": {"svn": 7}}, NotGenuineError, ""),
        ({"platform_svn": 1}, NotGenuineError, "no level"),
        ({"status": "Revoked"}, NotGenuineError, ""),
        ({"info_fmspc": bytes(6)}, UndecidedError, "another platform"),
        ({"issued": NOW + timedelta(seconds=1)}, UndecidedError, "TCB info is for"),
        ({"issued": NOW - timedelta(days=30, seconds=1)}, UndecidedError, "TCB info is for"),
        ({"pck_start": NOW + timedelta(days=1)}, NotGenuineError, "not valid yet"),
        ({"pck_start": NOW - timedelta(days=4000)}, NotGenuineError, "expired"),
        ({"revoke_pck": True}, NotGenuineError, "the PCK certificate was revoked"),
        ({"revoke_ca": True}, NotGenuineError, "the CA of the PCK certificate was revoked"),
        ({"revoke_signer": True}, NotGenuineError, "the signer of TCB info was revoked"),
        ({"crl_start": NOW - timedelta(days=31)}, UndecidedError, "PCK CRL is not current"),
        ({"crl_start": NOW + timedelta(days=1)}, UndecidedError, "PCK CRL is not current"),
    ],
)  # fmt: skip
def test_one_wrong_detail(world: World, changes: dict, error: type[CloisterError], words: str) -> None:
    found = refusal(world.but(**changes))
    assert isinstance(found, error), found
    assert words in found.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (td_report(attributes=1 << 28 | 1), "debug"),
        (td_report(attributes=0), "SEPT_VE_DISABLE"),
        (td_report(attributes=1 << 28 | 1 << 29), "migrated"),
        (td_report(attributes=1 << 28 | 1 << 40), "not understood"),
        (td_report(newer=True, service=b"\x01" * 48), "service TD"),
    ],
)
def test_a_td_that_the_library_refuses_is_refused_with_the_reason(body: bytes, words: str) -> None:
    found = refusal(TDX.but(version=5, body=body))
    assert isinstance(found, RefusedError)
    assert words in found.message
    assert found.hint


def test_an_enclave_in_debug_mode_is_refused() -> None:
    found = refusal(SGX.but(body=enclave_report(attributes=0x07)))
    assert isinstance(found, RefusedError)
    assert "debug" in found.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (td_report(tcb_svn=bytes([4, 1, 2]) + bytes(13)), "TDX module TCB level"),
        (td_report(signer=b"\x01" * 48), "TDX module identity"),
        (td_report(seam_attributes=b"\x01" + bytes(7)), "TDX module identity"),
    ],
)
def test_a_module_that_intel_does_not_vouch_for(body: bytes, words: str) -> None:
    found = refusal(TDX.but(body=body))
    assert isinstance(found, NotGenuineError)
    assert words in found.message


@pytest.mark.parametrize("status", [status for status in qvl.STATUSES if not status.startswith("TDRelaunch")])
@WORLDS
def test_the_status_and_its_advisories_come_through(world: World, status: str) -> None:
    found = claims(world.but(status=status, advisories=("INTEL-SA-00001", "INTEL-SA-00002")))
    assert found.facts["tcb_status"] == status
    assert found.facts["advisories"] == "INTEL-SA-00001, INTEL-SA-00002"


class _Older(World):
    """Has older levels too: the module and the TDX components, and the quoting enclave, are OutOfDate there."""

    def tcb_info(self) -> dict:
        info = super().tcb_info()
        level = info["tcbLevels"][0]
        older = {**level["tcb"], "tdxtcbcomponents": [{"svn": n} for n in (3, 0, 2, *(0,) * 13)]}
        info["tcbLevels"].append({**level, "tcb": older, "tcbStatus": "OutOfDate"})
        module = info["tdxModuleIdentities"][0]["tcbLevels"]
        module.append({**module[0], "tcb": {"isvsvn": 3}, "tcbStatus": "OutOfDate"})
        return info

    def qe_identity(self) -> dict:
        identity = super().qe_identity()
        level = identity["tcbLevels"][0]
        identity["tcbLevels"].append(
            {**level, "tcb": {"isvsvn": 6}, "tcbStatus": "OutOfDate", "advisoryIDs": ["INTEL-SA-00009"]}
        )
        return identity


def test_a_td_that_was_launched_before_an_update_is_told_apart() -> None:
    old, new = bytes([4, 1, 2]) + bytes(13), bytes([6, 1, 2]) + bytes(13)
    for version, body, status in (
        (5, td_report(tcb_svn=old, newer=True, svn2=new), "TDRelaunchAdvised"),
        (5, td_report(tcb_svn=old, newer=True, svn2=old), "OutOfDate"),
        (4, td_report(tcb_svn=old), "OutOfDate"),
        (5, td_report(tcb_svn=new, newer=True, svn2=new), "UpToDate"),
    ):
        assert claims(_Older(tdx=True, version=version, body=body)).facts["tcb_status"] == status


def test_an_old_quoting_enclave_makes_the_whole_out_of_date() -> None:
    found = claims(_Older(tdx=True, qe={"svn": 7}))
    assert found.facts["tcb_status"] == "OutOfDate"
    assert found.facts["advisories"] == "INTEL-SA-00009"


@WORLDS
def test_every_reserved_byte_of_the_header_and_the_signatures_count(world: World) -> None:
    data = world.quote
    for at in (*range(48), len(data) - 1, *range(48, len(data), 97)):
        changed = bytearray(data)
        changed[at] ^= 0x10
        found = refusal(world, evidence=bytes(changed))
        # White space inside PEM and its last line feed carry nothing.
        assert found is not None or data[at : at + 1].isspace(), at


@pytest.mark.parametrize("at", [(20, 28), (96, 128), (160, 192), (262, 304)])
def test_a_reserved_byte_of_a_report_is_malformed(at: tuple[int, int]) -> None:
    body = bytearray(enclave_report())
    body[at[0]] = 1
    found = refusal(SGX.but(body=bytes(body)))
    assert isinstance(found, MalformedError)
    assert "reserved" in found.message


def test_lengths_are_exact() -> None:
    data = TDX.quote
    size = int.from_bytes(data[632:636], "little")
    for wrong in (size - 1, size + 1, 0, 0xFFFFFFFF):
        changed = data[:632] + wrong.to_bytes(4, "little") + data[636:]
        assert isinstance(refusal(TDX, evidence=changed), MalformedError)
    # One byte more inside the signature data, and its length with it.
    changed = data[:632] + (size + 1).to_bytes(4, "little") + data[636:] + b"\x00"
    assert isinstance(refusal(TDX, evidence=changed), MalformedError)
    kind = data.index(b"\x05\x00", 636 + 128 + 6 + 384 + 64 + 2 + 32)
    for other in (1, 2, 3, 4, 6, 7):
        changed = data[:kind] + bytes([other]) + data[kind + 1 :]
        assert isinstance(refusal(TDX, evidence=changed), MalformedError)


@pytest.mark.parametrize(("version", "kind", "size"), [(5, 2, 648), (5, 3, 584), (5, 1, 648), (5, 4, 648), (5, 0, 648)])
def test_body_type_and_size_must_fit(version: int, kind: int, size: int) -> None:
    data = bytearray(World(tdx=True, version=version).quote)
    data[48:54] = kind.to_bytes(2, "little") + size.to_bytes(4, "little")
    assert isinstance(refusal(TDX, evidence=bytes(data)), MalformedError)


def test_a_foreign_key_signed_the_collateral() -> None:
    other = issue("SIMULATED other", None, ca=True)
    info = json.dumps(TDX.tcb_info())
    forged = raw(other.key, info.encode()).hex()
    assert isinstance(refusal(TDX, collateral=TDX.collateral(tcb_info_signature=forged)), NotGenuineError)
    identity = raw(other.key, json.dumps(TDX.qe_identity()).encode()).hex()
    assert isinstance(refusal(TDX, collateral=TDX.collateral(qe_identity_signature=identity)), NotGenuineError)
    signer = issue("SIMULATED SGX TCB Signing", other, ca=False)
    chain = pem(signer) + pem(other)
    found = refusal(TDX, collateral=TDX.collateral(
        tcb_info_issuer_chain=chain, tcb_info_signature=raw(signer.key, info.encode()).hex()))  # fmt: skip
    assert isinstance(found, NotGenuineError)
    assert "root" in found.message


def test_both_texts_chain_to_the_root_of_the_quote() -> None:
    other = World(tdx=True)
    members = json.loads(other.collateral())
    theirs = {name: members[name] for name in ("qe_identity", "qe_identity_signature", "qe_identity_issuer_chain")}
    item = Item("intel-collateral", TDX.collateral(**theirs))
    with pytest.raises(NotGenuineError, match="another root than the quote"):
        verify("tdx", TDX.quote, item, anchors=(TDX.anchor, other.anchor))


@WORLDS
def test_a_high_s_is_valid(world: World) -> None:
    """ECDSA has two signatures for one; neither is an identity of the quote."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    data = world.quote
    at = len(Quote.parse(data).signed) + 4 + 32
    other = (order - int.from_bytes(data[at : at + 32], "big")).to_bytes(32, "big")
    assert claims(world, evidence=data[:at] + other + data[at + 32 :]).genuine


@given(st.binary(max_size=700), st.sampled_from([3, 4, 5]), st.sampled_from([0, 0x81]))
def test_whatever_follows_a_header_is_malformed(data: bytes, version: int, tee: int) -> None:
    header = struct.pack("<HHIHH", version, 2, tee, 0, 0) + INTEL + bytes(20)
    for each in (data, header + data):
        with pytest.raises(MalformedError):
            Quote.parse(each)


def test_the_key_of_a_platform_does_not_sign_collateral() -> None:
    info = json.dumps(TDX.tcb_info())
    chain = pem(TDX.pck) + pem(TDX.ca)
    found = refusal(TDX, collateral=TDX.collateral(
        tcb_info_issuer_chain=chain, tcb_info_signature=raw(TDX.pck.key, info.encode()).hex()))  # fmt: skip
    assert isinstance(found, NotGenuineError)


def test_revocation_lists_are_those_of_the_right_issuer() -> None:
    foreign = issue("SIMULATED SGX PCK Platform CA", TDX.root, ca=True)
    found = refusal(TDX, collateral=TDX.collateral(pck_crl=crl(foreign).hex()))
    assert isinstance(found, NotGenuineError)
    processor = issue("SIMULATED SGX PCK Processor CA", TDX.root, ca=True)
    found = refusal(TDX, collateral=TDX.collateral(pck_crl=crl(processor).hex()))
    assert isinstance(found, UndecidedError)
    assert "another CA" in found.message
    found = refusal(TDX, collateral=TDX.collateral(root_ca_crl=crl(processor).hex()))
    assert isinstance(found, NotGenuineError)


@pytest.mark.parametrize("member", sorted(json.loads(TDX.collateral())))
def test_collateral_is_parsed_strictly(member: str) -> None:
    for value in (..., None, 7, "", "zz", ["x"], {}):
        found = refusal(TDX, collateral=TDX.collateral(**{member: value}))
        assert isinstance(found, CloisterError)
        assert not isinstance(found, RefusedError)
    assert isinstance(refusal(TDX, collateral=TDX.collateral(surplus="x")), MalformedError)
    assert isinstance(refusal(TDX, collateral=b"[]"), MalformedError)
    assert isinstance(refusal(TDX, collateral=TDX.collateral() + b" " * 600_000), MalformedError)


def test_a_pck_chain_in_the_collateral_counts_for_nothing() -> None:
    other = World(tdx=True)
    chain = pem(other.pck) + pem(other.ca) + pem(other.root)
    assert claims(TDX, collateral=TDX.collateral(pck_certificate_chain=chain)).genuine
    # The quote's own PCK did not sign this one; that of the collateral did.
    collateral = TDX.collateral(pck_certificate_chain=pem(TDX.pck) + pem(TDX.ca) + pem(TDX.root))
    found = refusal(TDX, evidence=other.quote, collateral=collateral)
    assert isinstance(found, NotGenuineError)


def test_among_several_items_the_current_one_of_the_highest_evaluation_counts() -> None:
    items = [
        TDX.but(fmspc=bytes(6)).collateral(),
        TDX.collateral(),
    ]
    newer = json.dumps(TDX.tcb_info() | {"tcbEvaluationDataNumber": 18, "tcbLevels": [
        TDX.tcb_info()["tcbLevels"][0] | {"tcbStatus": "OutOfDate"}]})  # fmt: skip
    identity = json.dumps(TDX.qe_identity() | {"tcbEvaluationDataNumber": 18})
    items.append(TDX.collateral(
        tcb_info=newer, tcb_info_signature=raw(TDX.signing.key, newer.encode()).hex(),
        qe_identity=identity, qe_identity_signature=raw(TDX.signing.key, identity.encode()).hex()))  # fmt: skip
    for order in (items, items[::-1]):
        found = verify("tdx", TDX.quote, *(Item("intel-collateral", item) for item in order), anchors=(TDX.anchor,))
        assert found.facts["tcb_status"] == "OutOfDate"
        assert found.facts["tcb_evaluation"] == "18"


def test_the_older_evaluation_of_the_two_texts_counts() -> None:
    assert claims(TDX.but(qe_evaluation=12)).facts["tcb_evaluation"] == "12"


@WORLDS
def test_without_collateral_nothing_is_decided(world: World) -> None:
    name = "tdx" if world.tdx else "sgx"
    with pytest.raises(UndecidedError, match="no .* collateral for FMSPC 00906ed50000"):
        verify(name, world.quote, anchors=(world.anchor,))
    other = World(tdx=not world.tdx, version=4 if not world.tdx else 3)
    assert isinstance(refusal(world, collateral=other.collateral()), UndecidedError)


def test_the_library_itself_refuses_stale_collateral() -> None:
    """The wrapper's own dates are not the only ones: without them it does not pass either."""
    from cloister.trust.dcap import pck
    from cloister.trust.dcap.collateral import Endorsements

    quote, item = Quote.parse(TDX.quote), Endorsements.parse(TDX.collateral())
    chain = pck.validate(quote, (TDX.anchor,), now=NOW)
    known = qvl.platform(chain.leaf)
    assert qvl.evaluate(quote, item, known, chain.root, now=NOW).status == "UpToDate"
    for now in (NOW - timedelta(days=2), NOW + timedelta(days=40)):
        with pytest.raises(NotGenuineError):
            qvl.evaluate(quote, item, known, chain.root, now=now)


@WORLDS
def test_the_binding_is_all_64_bytes(world: World) -> None:
    bound = b"b" * 32
    body = (td_report if world.tdx else enclave_report)(
        report_data=bound + bytes(32), **({"newer": world.version == 5} if world.tdx else {})
    )
    form = registry.get("tdx" if world.tdx else "sgx")
    found = claims(world.but(body=body))
    form.bind(found, bound, None)
    with pytest.raises(NotGenuineError):
        form.bind(found, b"c" * 32, None)
    body = body.replace(bound + bytes(32), bound + bytes(31) + b"\x01")
    with pytest.raises(NotGenuineError):
        binding.report_data(claims(world.but(body=body)), bound, None)


def test_a_panic_of_the_library_does_not_end_the_client() -> None:
    class PanicException(BaseException):
        pass

    def panic() -> None:
        raise PanicException("bytes of the input")

    with pytest.raises(NotGenuineError, match="not readable"):
        qvl._call(panic, "x")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qvl._call(interrupt, "x")
