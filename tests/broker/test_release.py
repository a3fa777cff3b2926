"""The enclave gets its key from the broker; everybody else is told why not."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import os
import re
import socket
import ssl
import stat
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.broker import lab as labs
from tests.broker.lab import HOST, OTHER, PATH, Lab, Parent, attestation, enclave

from cloister.broker import sessions, store
from cloister.enclave.release import kbs_errors
from cloister.errors import CloisterError, ReleaseDeniedError, UndecidedError
from cloister.platforms import lab_tls as tls
from cloister.policy import release as release_policy
from cloister.tee.sim.root import SimulatedRoot
from cloister.weights import jwe, kbs


def refused(error: pytest.ExceptionInfo[CloisterError], code: str) -> None:
    """The error names what the broker said and tells what to check."""
    assert error.value.message.endswith(f"({code})")
    assert error.value.hint


def test_the_right_image_gets_the_key(lab: Lab) -> None:
    assert len(lab.key) == 32
    assert lab.wrapped.key_id == PATH
    assert lab.wrapped.ciphertext == b""
    assert lab.release().release(lab.wrapped) == lab.key
    *_, appraisal, released = lab.ledger
    assert (appraisal["event"], appraisal["outcome"]) == ("appraisal", "accepted")
    assert (released["event"], released["outcome"]) == ("release", "released")
    assert released["resource"] == PATH
    assert released["measurements"] == {"pcr0": labs.PCR0}
    assert released["simulated"] is True
    assert released["evidence_sha256"] == appraisal["evidence_sha256"]


def test_the_parent_sees_nothing_of_it(lab: Lab) -> None:
    parent = Parent(lab.port)
    assert lab.release(parent=parent).release(lab.wrapped) == lab.key
    carried = bytes(parent.carried)
    assert len(carried) > 4000
    for secret in (lab.key, b"kbs-session-id", b"tee-pubkey", PATH.encode()):
        assert secret not in carried


@pytest.mark.parametrize("pcr0", [OTHER, f"{int(labs.PCR0, 16) ^ 1:096x}"], ids=["another", "last bit"])
def test_another_image_is_denied(lab: Lab, pcr0: str) -> None:
    with pytest.raises(ReleaseDeniedError) as error:
        lab.release(enclave(lab.root, pcr0)).release(lab.wrapped)
    refused(error, "policy.measurement")
    assert lab.ledger[-1]["outcome"] == "refused"
    assert lab.ledger[-1]["measurements"] == {"pcr0": pcr0}


def test_a_debug_enclave_is_denied(lab: Lab) -> None:
    with pytest.raises(ReleaseDeniedError) as error:
        lab.release(enclave(lab.root, "00" * 48)).release(lab.wrapped)
    refused(error, "policy.debug")


@pytest.mark.parametrize("age", [timedelta(minutes=3), timedelta(hours=2), -timedelta(minutes=2)])
def test_a_stale_document_is_denied(lab: Lab, age: timedelta) -> None:
    with pytest.raises(ReleaseDeniedError) as error:
        lab.release(enclave(lab.root, age=age)).release(lab.wrapped)
    refused(error, "nitro.freshness")


def test_a_foreign_root_is_denied(lab: Lab) -> None:
    with pytest.raises(ReleaseDeniedError) as error:
        lab.release(enclave(SimulatedRoot.create())).release(lab.wrapped)
    refused(error, "nitro.chain")
    # Nobody vouches for what such evidence says.
    assert "measurements" not in lab.ledger[-1]


def test_a_changed_document_is_denied(lab: Lab) -> None:
    def attest(user_data: bytes, nonce: bytes) -> bytes:
        wrong = enclave(lab.root, "c3" * 48).attest(user_data, nonce)
        return wrong.replace(b"\xc3" * 48, bytes.fromhex(labs.PCR0))

    with pytest.raises(ReleaseDeniedError) as error:
        lab.release(attest=attest).release(lab.wrapped)
    refused(error, "nitro.signature")
    with pytest.raises(ReleaseDeniedError) as error:
        lab.release(attest=lambda *_: b"no document").release(lab.wrapped)
    refused(error, "nitro.cose")


@pytest.mark.parametrize("part", ["key", "nonce", "both absent", "replica's own"])
def test_evidence_about_something_else_is_denied(lab: Lab, part: str) -> None:
    signer = enclave(lab.root)

    def attest(user_data: bytes, nonce: bytes) -> bytes:
        match part:
            case "key":
                return signer.attest(bytes(48), nonce)
            case "nonce":
                return signer.attest(user_data, bytes(32))
            case "both absent":
                return signer.document({0: bytes.fromhex(labs.PCR0)})
        # What a replica signs for its clients: whoever gets one cannot use it here.
        return signer.attest(user_data[:32], nonce)

    with pytest.raises(ReleaseDeniedError) as error:
        lab.release(attest=attest).release(lab.wrapped)
    refused(error, "policy.binding")


def test_replayed_evidence_is_denied(lab: Lab) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    first = lab.auth()
    body = attestation(first.members["nonce"], key, enclave(lab.root))
    assert lab.ask("POST", kbs.ATTEST, body, cookie=first.cookie).status == 200
    # The same session: its challenge is used up.
    again = lab.ask("POST", kbs.ATTEST, body, cookie=first.cookie)
    assert (again.status, again.code) == (401, "session")
    # Another session: another challenge.
    second = lab.auth()
    assert second.members["nonce"] != first.members["nonce"]
    again = lab.ask("POST", kbs.ATTEST, body, cookie=second.cookie)
    assert (again.status, again.code) == (401, "challenge")
    # With the new nonce beside the old evidence.
    third = lab.auth()
    body["runtime-data"]["nonce"] = third.members["nonce"]
    again = lab.ask("POST", kbs.ATTEST, body, cookie=third.cookie)
    assert (again.status, again.code) == (401, "policy.binding")


def test_a_wrong_answer_uses_the_challenge_up(lab: Lab) -> None:
    key, challenge = ec.generate_private_key(ec.SECP256R1()), lab.auth()
    nonce = challenge.members["nonce"]
    wrong = attestation(nonce, key, enclave(lab.root, OTHER))
    assert lab.ask("POST", kbs.ATTEST, wrong, cookie=challenge.cookie).code == "policy.measurement"
    right = attestation(nonce, key, enclave(lab.root))
    assert lab.ask("POST", kbs.ATTEST, right, cookie=challenge.cookie).code == "session"
    assert lab.ask("GET", f"{kbs.RESOURCE}/{PATH}", cookie=challenge.cookie).status == 401


def test_another_key_than_the_attested_one_is_denied(lab: Lab) -> None:
    challenge = lab.auth()
    own, theirs = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    body = attestation(challenge.members["nonce"], own, enclave(lab.root), signed_key=theirs)
    answer = lab.ask("POST", kbs.ATTEST, body, cookie=challenge.cookie)
    assert (answer.status, answer.code) == (401, "policy.binding")


def test_a_stolen_session_brings_a_key_that_only_the_enclave_opens(lab: Lab) -> None:
    cookie, key = lab.attested()
    answer = lab.ask("GET", f"{kbs.RESOURCE}/{PATH}", cookie=cookie)
    assert answer.status == 200
    assert lab.key not in json.dumps(answer.members).encode()
    thief = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(CloisterError, match="does not open"):
        jwe.open_sealed(json.dumps(answer.members).encode(), thief)
    assert jwe.open_sealed(json.dumps(answer.members).encode(), key) == lab.key


@pytest.mark.parametrize(
    "cookie",
    ["", "kbs-session-id=", "kbs-session-id=" + "A" * 43, "other=" + "A" * 43, "kbs-session-id=../../etc"],
)
def test_without_an_attested_session_there_is_nothing(lab: Lab, cookie: str) -> None:
    for answer in (
        lab.ask("GET", f"{kbs.RESOURCE}/{PATH}", cookie=cookie),
        lab.ask("GET", f"{kbs.RESOURCE}/no/such/thing", cookie=cookie),
        lab.ask("POST", kbs.ATTEST, {}, cookie=cookie),
        lab.ask("GET", f"{kbs.RESOURCE}/{PATH}", cookie=lab.auth().cookie),
        lab.ask("GET", f"{kbs.RESOURCE}/{PATH}", headers=[("Authorization", "Bearer eyJhbGciOiJub25lIn0.e30.")]),
    ):
        assert (answer.status, answer.code) == (401, "session")
        assert answer.members["detail"]


def test_two_cookies_are_none(lab: Lab) -> None:
    (one, _), (two, _) = lab.attested(), lab.attested()
    assert lab.ask("GET", f"{kbs.RESOURCE}/{PATH}", cookie=f"{one}; {two}").status == 401


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("notes/data-key/8", 404, "resource"),
        ("notes/data-key/4", 403, "grant.version"),
        ("other/data-key/7", 403, "grant.image"),
        ("notes/other/7", 404, "resource"),
        ("notes/data-key/07", 404, "resource"),
        ("notes/data-key/7/", 404, "resource"),
        ("notes/data-key", 404, "resource"),
        ("../broker.key", 404, "resource"),
        ("notes%2Fdata-key%2F8", 404, "resource"),
        ("notes/data-key/7%00", 404, "resource"),
    ],
)
def test_what_an_attested_session_does_not_get(lab: Lab, path: str, status: int, code: str) -> None:
    cookie, _ = lab.attested()
    answer = lab.ask("GET", f"{kbs.RESOURCE}/{path}", cookie=cookie)
    assert (answer.status, answer.code) == (status, code)


def test_other_paths_and_methods(lab: Lab) -> None:
    assert lab.ask("GET", "/kbs/v0/attestation-policy").status == 404
    assert lab.ask("POST", f"{kbs.RESOURCE}/{PATH}", b"0" * 32).status == 405
    assert lab.ask("GET", kbs.AUTH).status == 405


@pytest.mark.parametrize(
    ("version", "code"),
    [("notes/8", "resource"), ("notes/4", "grant.version"), ("other/7", "grant.image")],
)
def test_the_client_says_what_the_broker_decided(lab: Lab, version: str, code: str) -> None:
    name, _, number = version.partition("/")
    with pytest.raises(ReleaseDeniedError) as error:
        lab.release().release(labs.wrapped(name, int(number)))
    refused(error, code)


@pytest.mark.parametrize(
    "changes",
    [
        {"service": "aws-kms"},
        {"key_id": "notes/data-key/8"},
        {"key_id": "https://elsewhere/notes/data-key/7"},
        {"context": {"cloister:model": "notes"}},
        {"context": {"cloister:model": "../x", "cloister:version": "7"}},
        {"ciphertext": b"x"},
    ],
)
def test_a_manifest_that_names_something_else_is_not_asked_for(lab: Lab, changes: dict[str, object]) -> None:
    with pytest.raises(ReleaseDeniedError, match="measured configuration"):
        lab.release().release(dataclasses.replace(lab.wrapped, **changes))


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"version": "0.3.0", "tee": "nitro", "extra-params": ""}, "version"),
        ({"version": "0.4.1", "tee": "nitro", "extra-params": ""}, "version"),
        ({"version": "0.4.0", "tee": "sample", "extra-params": ""}, "tee"),
        ({"version": "0.4.0", "tee": "nitro"}, "request"),
        ({"version": "0.4.0", "tee": "nitro", "extra-params": "", "more": 1}, "request"),
        (b"{", "request"),
    ],
)
def test_requests_that_open_no_session(lab: Lab, request_: object, code: str) -> None:
    answer = lab.ask("POST", kbs.AUTH, request_)
    assert (answer.status, answer.code, answer.cookie) == (401, code, "")


def test_bodies_are_bounded(lab: Lab) -> None:
    answer = lab.ask("POST", kbs.AUTH, b" " * 20_000)
    assert (answer.status, answer.code) == (413, "too-large")
    challenge = lab.auth()
    answer = lab.ask("POST", kbs.ATTEST, b" " * 40_000, cookie=challenge.cookie)
    assert (answer.status, answer.code) == (413, "too-large")
    # Nothing was read, so nothing was used up.
    body = attestation(challenge.members["nonce"], ec.generate_private_key(ec.SECP256R1()), enclave(lab.root))
    assert lab.ask("POST", kbs.ATTEST, body, cookie=challenge.cookie).status == 200


def test_what_the_policy_no_longer_grants_is_not_released(tmp_path: Path) -> None:
    with labs.run(tmp_path) as lab:
        cookie, _ = lab.attested()
        assert lab.ask("GET", f"{kbs.RESOURCE}/{PATH}", cookie=cookie).status == 200
        lab.set_policy(labs.policy(lab.root, labs.grant(pcr0=OTHER)))
        answer = lab.ask("GET", f"{kbs.RESOURCE}/{PATH}", cookie=cookie)
        assert (answer.status, answer.code) == (401, "session")
        with pytest.raises(ReleaseDeniedError) as error:
            lab.release().release(lab.wrapped)
        refused(error, "policy.measurement")
        # The simulated root is not allowed any more: its evidence does not chain to anything.
        lab.set_policy(labs.policy(None))
        with pytest.raises(ReleaseDeniedError) as error:
            lab.release().release(lab.wrapped)
        refused(error, "nitro.chain")
        # Another simulated root than the one that is named.
        lab.set_policy(labs.policy(SimulatedRoot.create()))
        with pytest.raises(ReleaseDeniedError) as error:
            lab.release().release(lab.wrapped)
        refused(error, "nitro.chain")
        # A version below the minimum, by policy alone.
        lab.set_policy(labs.policy(lab.root, labs.grant(version=8)))
        with pytest.raises(ReleaseDeniedError) as error:
            lab.release().release(lab.wrapped)
        refused(error, "grant.version")
        # A policy that nobody can read denies everything.
        lab.set_policy("schema = ")
        with pytest.raises(UndecidedError) as error:
            lab.release().release(lab.wrapped)
        refused(error, "unavailable")
        lab.set_policy(labs.policy(lab.root))
        assert lab.release().release(lab.wrapped) == lab.key
        outcomes = [entry["outcome"] for entry in lab.ledger if entry["event"] == "release"]
        assert outcomes == ["released", "refused", "released"]


def test_a_broker_without_simulated_refuses_even_a_claim_of_genuineness(tmp_path: Path) -> None:
    """The rule beside the anchors: should a simulated root ever be among them, the claims still say so."""
    root = SimulatedRoot.create()
    allowed = release_policy.ReleasePolicy.from_toml(labs.policy(root).encode())
    policy = dataclasses.replace(allowed, allow_simulated=False)
    from datetime import UTC, datetime

    with pytest.raises(CloisterError, match="SIMULATED") as error:
        release_policy.attest(
            enclave(root).attest(bytes(48), bytes(32)), "application/vnd.cloister.nitro-doc", policy,
            binding=bytes(48), challenge=bytes(32), now=datetime.now(UTC),
        )  # fmt: skip
    assert error.value.verdict is not None
    assert [check.id for check in error.value.verdict.checks if check.status == "failed"] == ["policy.genuine"]


def test_a_parent_that_answers_in_place_of_the_broker(lab: Lab, tmp_path: Path) -> None:
    tls.make(tmp_path, [HOST])
    with pytest.raises(UndecidedError, match="TLS certificate"):
        lab.release(tls_roots=(tmp_path / "ca.pem").read_text()).release(lab.wrapped)
    with pytest.raises(UndecidedError, match="TLS certificate"):
        # A certificate of the right authority for another name.
        lab.release(parent=Parent(lab.port, hosts=("else.test",)), host="else.test").release(lab.wrapped)
    with pytest.raises(UndecidedError, match="allow-list"):
        lab.release(parent=Parent(lab.port, hosts=())).release(lab.wrapped)


def test_a_changed_key_file_is_not_released(tmp_path: Path) -> None:
    with labs.run(tmp_path) as lab:
        path = tmp_path / "broker" / store.KEYS / "notes@7.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert lab.key not in path.read_bytes()
        members = json.loads(path.read_text())
        sealed = base64.urlsafe_b64decode(members["ciphertext"])
        members["ciphertext"] = kbs_text(bytes([sealed[0] ^ 1]) + sealed[1:])
        path.write_text(json.dumps(members))
        with pytest.raises(UndecidedError) as error:
            lab.release().release(lab.wrapped)
        refused(error, "unavailable")
        assert lab.ledger[-1]["event"] == "appraisal"


def kbs_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_a_ledger_that_somebody_changed_stops_everything(tmp_path: Path) -> None:
    with labs.run(tmp_path) as lab:
        assert lab.release().release(lab.wrapped) == lab.key
        path = tmp_path / "broker" / store.LEDGER
        whole = path.read_bytes()
        path.write_bytes(whole[: whole[:-1].rindex(b"\n") + 1])
        with pytest.raises(UndecidedError) as error:
            lab.release().release(lab.wrapped)
        refused(error, "unavailable")
        # Put back, it is as it was.
        path.write_bytes(whole)
        assert lab.release().release(lab.wrapped) == lab.key
        other = path.with_suffix(".other")
        other.write_bytes(path.read_bytes())
        other.replace(path)
        with pytest.raises(UndecidedError) as error:
            lab.release().release(lab.wrapped)
        refused(error, "unavailable")
    path.write_bytes(whole.replace(b'"accepted"', b'"refused!"'))
    process, line = labs.start(tmp_path)
    labs.stop(process)
    assert line == ""
    assert process.returncode == 4
    assert "chain is broken" in (tmp_path / "broker.log").read_text()


@pytest.mark.parametrize(
    ("damage", "code", "said"),
    [
        (lambda broker: (broker / store.KEY).chmod(0o640), 2, "others may read"),
        (lambda broker: (broker / store.KEY).unlink(), 2, "cannot read the broker's key"),
        (lambda broker: (broker / store.KEY).write_bytes(b"short"), 2, "not a broker's folder"),
        (lambda broker: (broker / store.POLICY).unlink(), 6, "policy.toml"),
        (lambda broker: (broker / store.POLICY).write_text("schema = 1"), 2, "schema"),
        (lambda broker: (broker / store.LEDGER).write_text("{}\n"), 4, "chain is broken at entry 0"),
        (lambda broker: (broker / store.LEDGER).write_text("nonsense\n"), 3, "ledger entry 0"),
    ],
)
def test_a_broker_that_does_not_start(tmp_path: Path, damage, code: int, said: str) -> None:
    labs.prepare(tmp_path, SimulatedRoot.create())
    damage(tmp_path / "broker")
    process, line = labs.start(tmp_path)
    process.wait(20)
    labs.stop(process)
    assert (line, process.returncode) == ("", code)
    assert said in re.sub(r"\s+", " ", (tmp_path / "broker.log").read_text())


def test_without_tls_only_where_it_is_said_and_on_loopback(tmp_path: Path) -> None:
    labs.prepare(tmp_path, SimulatedRoot.create())

    def attempt(*words: str) -> str:
        command = [os.sys.executable, "-m", "cloister", "broker", "serve", str(tmp_path / "broker"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2, done
        return done.stderr

    assert "--behind-terminator" in attempt("--listen", "127.0.0.1:0")
    assert "--behind-terminator" in attempt("--listen", "127.0.0.1:0", "--certificate", "x")
    assert "loopback" in attempt("--listen", "0.0.0.0:0", "--behind-terminator")
    assert "certificate" in attempt(
        "--listen", "127.0.0.1:0", "--certificate", "/dev/null", "--private-key", "/dev/null"
    )


def test_state_survives_a_restart_and_sessions_do_not(tmp_path: Path) -> None:
    with labs.run(tmp_path) as first:
        cookie, _ = first.attested()
        before = len(first.ledger)
    process, line = labs.start(tmp_path)
    try:
        second = dataclasses.replace(first, url=json.loads(line)["url"], process=process)
        assert second.ask("GET", f"{kbs.RESOURCE}/{PATH}", cookie=cookie).status == 401
        assert second.release().release(second.wrapped) == first.key
        assert [entry["event"] for entry in second.ledger[before:]] == ["start", "appraisal", "release"]
    finally:
        labs.stop(process)


def test_canary_nothing_secret_in_logs_ledger_and_errors(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    cookie, _ = lab.attested()
    assert lab.release().release(lab.wrapped) == lab.key
    shown = [repr(lab.wrapped)]
    for attester in (enclave(lab.root, OTHER), enclave(SimulatedRoot.create())):
        with pytest.raises(CloisterError) as error:
            lab.release(attester).release(lab.wrapped)
        shown += [str(error.value), error.value.hint, repr(error.value)]
    logged = "\n".join([*shown, caplog.text, lab.log.read_text(), json.dumps(lab.ledger)])
    for secret in (cookie.partition("=")[2], lab.key.hex(), repr(lab.key)[2:-1], kbs_text(lab.key)):
        assert secret not in logged
    assert "policy.measurement" in logged


def test_every_denial_is_explained() -> None:
    """What the broker can say, the client can explain."""
    checks = {check for check, _ in (*release_policy.ATTESTATION, *release_policy.RELEASE)}
    assert checks <= set(kbs_errors.DENIED)
    for code in (*kbs_errors.DENIED, "session", "request", "too-large", "unavailable"):
        assert "not known here" not in kbs_errors.error_for(code).message


def test_sessions_are_bounded_and_end() -> None:
    now = [0.0]
    kept = sessions.Sessions(clock=lambda: now[0])
    first, _ = kept.challenge()
    names = [kept.challenge()[0] for _ in range(sessions.MAX_CHALLENGES)]
    assert kept.count() == (sessions.MAX_CHALLENGES, 0)
    # The oldest made room.
    assert kept.answer(first) is None
    assert kept.answer(names[0]) is not None
    assert kept.answer(names[0]) is None
    # A flood of challenges leaves attested sessions alone.
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    kept.attested("a", key, None, "", "")
    for _ in range(2 * sessions.MAX_CHALLENGES):
        kept.challenge()
    assert kept.get("a") is not None
    for number in range(sessions.MAX_SESSIONS):
        kept.attested(str(number), key, None, "", "")
    assert kept.count()[1] == sessions.MAX_SESSIONS
    assert kept.get("a") is None
    last, _ = kept.challenge()
    now[0] += sessions.CHALLENGE_LIFE
    assert kept.answer(last) is None
    assert kept.get("0") is not None
    now[0] += sessions.SESSION_LIFE
    assert kept.get("0") is None
    kept.challenge()
    assert kept.count()[0] == 1


def test_many_sessions_at_once(lab: Lab) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: lab.release().release(lab.wrapped), range(24)))
    assert set(keys) == {lab.key}


SLOW = """
import sys
from cloister.broker import app, server
from cloister.cli.main import app as cli

app.BODY_SECONDS, server.MAX_CONNECTIONS = 0.3, 8
cli(["broker", "serve", *sys.argv[1:]])
"""


def test_a_body_that_does_not_come_and_too_many_connections(tmp_path: Path) -> None:
    """With shorter limits than the real ones, so as not to wait for them."""
    with labs.run(tmp_path, program=("-c", SLOW)) as lab:
        context = ssl.create_default_context(cadata=lab.roots)

        def connect() -> ssl.SSLSocket:
            raw = socket.create_connection(("127.0.0.1", lab.port), 20)
            return context.wrap_socket(raw, server_hostname="localhost")

        with connect() as stream:
            stream.sendall(b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
            assert stream.recv(65536).startswith(b"HTTP/1.1 408 ")
        idle = [connect() for _ in range(8)]
        with pytest.raises(UndecidedError) as error:
            lab.release().release(lab.wrapped)
        refused(error, "busy")
        for stream in idle:
            stream.close()
        # The broker hears of each end by and by.
        limit = time.monotonic() + 20
        while True:
            try:
                assert lab.release().release(lab.wrapped) == lab.key
                break
            except UndecidedError:
                assert time.monotonic() < limit
                time.sleep(0.05)
