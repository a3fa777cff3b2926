"""A token of the SIMULATED Trust Authority, from a simulated TD's quote to a client's verdict; and everything between
that must make it worthless."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from tests.platforms.local.lab import FITS, MISFIT, NOW, REGISTERS, B, Inside, Lab, bound, policy

from cloister.client.trust_authority import background_check
from cloister.errors import CloisterError, MalformedError, NotGenuineError, RefusedError, UndecidedError, UsageError
from cloister.platforms.local.trust_authority import service as services
from cloister.policy.appraise import appraise
from cloister.policy.document import Policy
from cloister.policy.verdict import Verdict
from cloister.tee.evidence import Offer, Offers, Role
from cloister.tee.ita import MEDIA_TYPE
from cloister.tee.ita.attest import TrustAuthorityAttester
from cloister.tee.sim.tdx import SimulatedTdx
from cloister.trust.collateral import Collateral, Item
from cloister.trust.jwt import Alg
from cloister.wire.strict_json import decode_base64url, encode_base64url


def _collateral(inside: Inside) -> Collateral:
    lists = [inside.service.revocations(name) for name in ("ats-ca-crl.der", "root-ca-crl.der")]
    keys = json.dumps(inside.service.key_set()).encode()
    return Collateral((Item("ita-certs", keys), *(Item("ita-crl", data) for data in lists if data is not None)))


def _appraise(
    inside: Inside, token: bytes, *, rules: Policy | None = None, now: datetime = NOW, binding: bytes = B
) -> Verdict:
    offers = Offers(
        offers=(Offer(role=Role.RESULT, media_type=MEDIA_TYPE, data=token),), collateral=_collateral(inside)
    )
    rules = policy(inside.service.root.pem) if rules is None else rules
    return appraise(offers, bound(now, binding), rules, now=now)


# --- The whole way, over HTTPS ----------------------------------------------------------------------------------------


def test_a_token_for_a_key_is_accepted_and_simulated(lab: Lab) -> None:
    with lab.client() as service:
        offers = TrustAuthorityAttester(service, lab.td.quote, policy_ids=[FITS]).offer(B, b"f" * 32)
    now = datetime.now(UTC)
    verdict = appraise(offers, bound(now), policy(lab.root, policies=[FITS]), now=now)
    assert verdict.accepted
    assert verdict.simulated
    assert verdict.tee == "ita"
    assert all("SIMULATED" in subject for subject in verdict.chain)
    assert verdict.summary().startswith("SIMULATED")


def test_the_attester_fetches_keys_and_lists_once_an_hour(lab: Lab) -> None:
    now = [0.0]
    fetched = []
    with lab.client() as service:
        endorsements = service.endorsements
        service.endorsements = lambda: fetched.append(now[0]) or endorsements()
        attester = TrustAuthorityAttester(service, lab.td.quote, algorithm=Alg.RS256, clock=lambda: now[0])
        for now[0] in (0.0, 3600.0, 3601.0):
            attester.offer(B, None)
    assert fetched == [0.0, 3601.0]


def test_by_default_simulated_tokens_are_refused(lab: Lab) -> None:
    with lab.client() as service:
        offers = TrustAuthorityAttester(service, lab.td.quote).offer(B, None)
    now = datetime.now(UTC)
    accepting = policy(lab.root)
    for stripped in (
        replace(accepting, allow_simulated=False, anchors={}),  # what a policy without the root reads as
        replace(accepting, allow_simulated=False),
    ):
        with pytest.raises(NotGenuineError):
            appraise(offers, bound(now), stripped, now=now)


def test_a_quote_that_was_changed_on_its_way_gets_no_token(lab: Lab) -> None:
    def bent(report_data: bytes) -> bytes:
        quote = bytearray(lab.td.quote(report_data))
        quote[700] ^= 1
        return bytes(quote)

    with lab.client() as service, pytest.raises(UndecidedError, match="refused the request .HTTP 400"):
        TrustAuthorityAttester(service, bent).offer(B, None)


def test_a_nonce_is_not_taken_twice_over_the_network(lab: Lab) -> None:
    with lab.client() as service:
        nonce = service.nonce()
        service.nonce = lambda: nonce
        attester = TrustAuthorityAttester(service, lab.td.quote)
        attester.offer(B, None)
        with pytest.raises(UndecidedError, match="HTTP 400"):
            attester.offer(B, None)


# --- What must fail ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def token(inside: Inside) -> bytes:
    """A good one."""
    return inside.attest(inside.body())


def _resigned(inside: Inside, token: bytes, **claims: object) -> bytes:
    """The service itself says something else."""
    told = json.loads(decode_base64url(token.decode().split(".")[1], "claims"))
    return inside.service._leaf.sign({**told, **claims}, Alg.PS384, jku="https://localhost/certs").encode()


def _header(token: bytes, **members: object) -> bytes:
    head, body, signature = token.decode().split(".")
    changed = {**json.loads(decode_base64url(head, "header")), **members}
    return f"{encode_base64url(json.dumps(changed).encode())}.{body}.{signature}".encode()


def _signature(token: bytes) -> bytes:
    head, body, signature = token.decode().split(".")
    raw = bytearray(decode_base64url(signature, "signature"))
    raw[7] ^= 1
    return f"{head}.{body}.{encode_base64url(bytes(raw))}".encode()


def _claim(token: bytes) -> bytes:
    head, body, signature = token.decode().split(".")
    claims = decode_base64url(body, "claims").replace(b"UpToDate", b"OutOfDat")
    return f"{head}.{encode_base64url(claims)}.{signature}".encode()


@pytest.mark.parametrize(
    ("change", "check", "kind"),
    [
        (lambda i, t: _signature(t), "ita.signature", NotGenuineError),
        (lambda i, t: _claim(t), "ita.signature", NotGenuineError),
        (lambda i, t: _header(t, alg="RS256"), "ita.signature", NotGenuineError),
        (lambda i, t: _header(t, alg="none"), "ita.token", NotGenuineError),
        (lambda i, t: _header(t, alg="HS256"), "ita.token", NotGenuineError),
        (lambda i, t: _header(t, kid="another"), "ita.key", UndecidedError),
        (lambda i, t: t[:-4], "ita.signature", NotGenuineError),
        (lambda i, t: _resigned(i, t, iss="https://localhost"), "ita.times", NotGenuineError),
        (lambda i, t: _resigned(i, t, exp=int(NOW.timestamp())), "ita.times", NotGenuineError),
        (lambda i, t: _resigned(i, t, ver="3.0.0"), "ita.claims", MalformedError),
        (lambda i, t: _resigned(i, t, iss="Intel Trust Authority"), "policy.ita.issuer", RefusedError),
        (
            lambda i, t: i.attest(i.body(token_signing_alg="RS256")),
            "policy.ita.algorithm",
            RefusedError,
        ),
        (lambda i, t: i.attest(i.body(held=b"C" * 32)), "policy.binding", NotGenuineError),
        (lambda i, t: i.attest(i.body(held=B + b"\x00")), "policy.binding", NotGenuineError),
        (lambda i, t: i.attest({"tdx": {"quote": i.body()["tdx"]["quote"]}}), "policy.binding", NotGenuineError),
    ],
)
def test_a_token_that_is_wrong(
    inside: Inside, token: bytes, change: Callable[[Inside, bytes], bytes], check: str, kind: type[CloisterError]
) -> None:
    with pytest.raises(kind) as caught:
        _appraise(inside, change(inside, token))
    assert caught.value.verdict is not None
    failed = [each.id for each in caught.value.verdict.checks if each.status == "failed"]
    assert failed == [check]
    assert caught.value.verdict.simulated


def test_a_token_ends_after_five_minutes(inside: Inside, token: bytes) -> None:
    rules = policy(inside.service.root.pem)
    end = NOW + timedelta(minutes=5)
    assert _appraise(inside, token, now=end).accepted
    # Past the policy's age; with an old age allowed, past the token's own end and the clock's skew.
    for now, allowed in ((end + timedelta(seconds=1), rules.max_age), (end + timedelta(minutes=1), timedelta(hours=1))):
        with pytest.raises(NotGenuineError) as caught:
            _appraise(inside, token, now=now, rules=replace(rules, max_age=allowed))
        assert [each.id for each in caught.value.verdict.checks if each.status == "failed"] == ["ita.times"]


def test_a_token_of_another_service_is_not_genuine(inside: Inside, token: bytes, lab: Lab) -> None:
    with pytest.raises(NotGenuineError, match="not trusted here"):
        _appraise(inside, token, rules=policy(lab.root))


def test_a_td_with_other_code_is_refused(inside: Inside) -> None:
    for changed in (
        replace(REGISTERS, mrtd=b"\x0e" * 48),
        replace(REGISTERS, rtmrs=(*REGISTERS.rtmrs[:2], b"\xa3" * 48, bytes(48))),
    ):
        with pytest.raises(RefusedError) as caught:
            _appraise(inside, inside.attest(inside.body()), rules=policy(inside.service.root.pem, changed))
        assert [e.id for e in caught.value.verdict.checks if e.status == "failed"] == ["policy.ita.measurement"]


def test_policies_of_the_service_that_did_not_match(inside: Inside) -> None:
    for wanted, asked in ((MISFIT, [FITS, MISFIT]), (FITS, [FITS, MISFIT]), (FITS, [])):
        token = inside.attest(inside.body(policy_ids=asked))
        with pytest.raises(RefusedError):
            _appraise(inside, token, rules=policy(inside.service.root.pem, policies=[wanted]))


def test_a_debug_td_gets_no_token(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    import cloister.tee.sim.intel as intel

    whole = intel.td_report
    monkeypatch.setattr(intel, "td_report", lambda **options: whole(attributes=1, **options))
    with pytest.raises(services.ServiceError, match="quote verification failed"):
        inside.attest(inside.body())


# --- Background check -------------------------------------------------------------------------------------------------


def test_the_service_looks_at_a_quote_that_a_client_received(lab: Lab) -> None:
    report_data = B + bytes(32)
    quote, now = lab.td.quote(report_data), datetime.now(UTC)
    with lab.client() as service:
        verdict = background_check(quote, report_data, service, policy(lab.root), now=now)
        assert (verdict.accepted, verdict.simulated, str(verdict.subject)) == (True, True, "evidence")
        with pytest.raises(NotGenuineError, match="other report data"):
            background_check(quote, b"C" * 32 + bytes(32), service, policy(lab.root), now=now)
        with pytest.raises(NotGenuineError, match="other report data"):
            background_check(quote, B, service, policy(lab.root), now=now)
        with pytest.raises(UndecidedError, match="HTTP 400"):
            background_check(quote[:-300], report_data, service, policy(lab.root), now=now)
        with pytest.raises(RefusedError):
            other = replace(REGISTERS, mrtd=b"\x0e" * 48)
            background_check(quote, report_data, service, policy(lab.root, other), now=now)
        with pytest.raises(UsageError, match="does not accept tokens"):
            background_check(quote, report_data, service, replace(policy(lab.root), tees=("tdx",)), now=now)


def test_a_quote_of_another_platform_gets_no_verdict(lab: Lab) -> None:
    from cloister.tee.sim import tdx

    stranger = SimulatedTdx(tdx.create_root(), REGISTERS)
    with lab.client() as service, pytest.raises(UndecidedError, match="HTTP 400"):
        background_check(stranger.quote(bytes(64)), bytes(64), service, policy(lab.root), now=datetime.now(UTC))
