"""The targets: a name, a corpus of well-formed inputs, and the decoder."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloister.api import requests, sse, tenants
from cloister.broker import ledger, messages
from cloister.channel import challenge, chunked, hpke, ohttp
from cloister.channel.bundle import Bundle
from cloister.channel.keyconfig import KeyConfig, decode_key_configs, encode_key_configs
from cloister.channel.keyring import KeySchedule, ReplicaFacts, make_key
from cloister.channel.receipt import Receipt
from cloister.client.appraisal import verify_bundle
from cloister.enclave import boot
from cloister.enclave.engine import gguf
from cloister.enclave.engine.pipe import Kind, Unpacker, pack
from cloister.enclave.release import credentials, kbs, kbs_errors
from cloister.enclave.release.cms import Envelope
from cloister.errors import CloisterError
from cloister.host import head
from cloister.image import debian, eif
from cloister.platforms.aws_nitro import nitro_cli
from cloister.platforms.qemu_nitro.kms import envelope
from cloister.policy.document import Policy
from cloister.policy.draft import draft
from cloister.policy.release import Grant, ReleasePolicy, beginning
from cloister.policy.verdict import Verdict
from cloister.tee import FORMATS, registry
from cloister.tee.checks import Checklist
from cloister.tee.evidence import Offers
from cloister.tee.nitro import verify as nitro
from cloister.tee.nitro.rules import Measurement
from cloister.tee.sim.attest import SimulatedNitro
from cloister.tee.sim.root import SimulatedRoot, issue
from cloister.trust.anchors import Anchor
from cloister.weights import jwe, manifest
from cloister.weights.kbs import Resource
from cloister.weights.keys import WrappedKey
from cloister.wire import bhttp, cbor, cose, strict_json, telemetry
from fuzz import (
    azure_targets,
    dcap_targets,
    emulator_targets,
    fetch_targets,
    google_targets,
    ita_targets,
    needs_targets,
    nvidia_targets,
    snp_targets,
)


@dataclass(frozen=True)
class Target:
    """One decoder."""

    name: str
    corpus: Callable[[], list[bytes]]
    run: Callable[[bytes], object]


NOW = datetime.now(UTC)
ROOT = SimulatedRoot.create()
# Its clock stands still: what it signs must be fresh at NOW, however long after the import.
ATTESTER = SimulatedNitro(ROOT, {0: b"\x01" * 48}, clock=lambda: NOW)
KEY = make_key(
    ReplicaFacts(boot_id=bytes(16), model_id="m", model_sha256="0a" * 32, config_sha256="0b" * 32),
    KeySchedule(), epoch=1, now=int(NOW.timestamp()), key_id=1, kem=hpke.KEM_X25519,
)  # fmt: skip
NONCE = b"n" * 32
POLICY_TEXT = draft(
    name="fuzz", measurements={"pcr0": "01" * 48}, model_sha256="0a" * 32, config_sha256="0b" * 32,
    simulated_root_pem=ROOT.pem,
)  # fmt: skip
POLICY = Policy.from_toml(POLICY_TEXT.encode())
MATERIAL = ohttp.KeyMaterial(private_key=KEY.private_key)


def _bundle() -> bytes:
    root, paths = challenge.gather([NONCE, b"m" * 32])
    bundle = Bundle(
        statement_bytes=KEY.statement_bytes, statement=KEY.statement, nonce=NONCE, path=paths[0],
        offers=Offers.one("", b""),
    )  # fmt: skip
    return replace(bundle, offers=ATTESTER.offer(bundle.binding, root)).to_bytes()


def _verdicts() -> list[bytes]:
    verdict = verify_bundle(_bundle(), POLICY, now=NOW, nonce=NONCE).verdict
    return [json.dumps(verdict.to_json()).encode()]


def _document(data: bytes) -> None:
    checklist = Checklist()
    checklist.plan(nitro.CHECKS)
    nitro.verify(
        data, now=NOW, anchors=(Anchor.simulated(ROOT.pem),), max_age=timedelta(hours=1), max_skew=timedelta(hours=1),
        checklist=checklist,
    )  # fmt: skip


def _sealed(chunk: int) -> bytes:
    sealer = chunked.RequestSealer(KEY.config)
    return sealer.start() + sealer.chunk(b"x" * chunk) + sealer.final(b"end")


def _open_request(data: bytes) -> None:
    opener = chunked.RequestOpener(lambda _header: MATERIAL, limit=1 << 20)
    opener.push(data)
    opener.finish()


SEALER = chunked.RequestSealer(KEY.config)


# Once: a sealer seals one request.
@cache
def _answers() -> list[bytes]:
    opener = chunked.RequestOpener(lambda _header: MATERIAL)
    opener.push(SEALER.seal(b"question"))
    opener.finish()
    answer = opener.response_sealer()
    return [answer.start() + answer.chunk(b"x" * 40) + answer.final(b"end")]


def _open_response(data: bytes) -> None:
    opener = SEALER.response_opener()
    opener.push(data)
    opener.finish()


def _response(data: bytes) -> None:
    decoder = bhttp.ResponseDecoder()
    for at in range(0, len(data), 7):
        decoder.push(data[at : at + 7])
    decoder.finish()
    # What the pieces make is what the whole makes: it may not be refused now.
    try:
        bhttp.decode_response(data)
    except CloisterError as error:
        raise AssertionError(f"whole: {error.message}") from None


def _files() -> list[bytes]:
    """What all other targets are given."""
    return [data for target in TARGETS if target.run is not _inspect for data in target.corpus()]


def _inspect(data: bytes) -> None:
    """The decoders of all formats are given every file of `cloister inspect`."""
    for name in FORMATS:
        with contextlib.suppress(CloisterError):
            registry.get(name).parse(data)


def _models() -> list[bytes]:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    metadata = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    metadata += text("llama.context_length") + struct.pack("<II", 4, 128)
    metadata += text("x.array") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    tensor = text("t") + struct.pack("<IQIQ", 1, 8, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 3) + metadata + tensor
    return [head + bytes(-len(head) % 32) + bytes(32)]


def _events(data: bytes) -> None:
    sse.Decoder().push(data)


RECIPIENT = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CREDENTIALS = (
    b'{"AccessKeyId":"ASIAEXAMPLE000000001","SecretAccessKey":"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",'
    b'"Token":"IQoJb3JpZ2luX2VjE","Expiration":"2026-06-01T12:00:00Z"}'
)
IMAGE = eif.Image(kernel=b"k", cmdline=b"c", ramdisks=(b"a", b"b"), metadata=b"{}")
IMAGE_FILE = eif.write(IMAGE)


def _image(data: bytes) -> None:
    """As it is, and with a right checksum, behind which everything else lies."""
    end = eif.HEADER.size
    checksum = struct.pack(">I", zlib.crc32(data[end:], zlib.crc32(data[: end - 4])))
    eif.parse(data[: end - 4] + checksum + data[end:]).measurements()
    eif.parse(data).measurements()


def _image_signatures() -> list[bytes]:
    signer = issue("signer", None, start=NOW, life=timedelta(days=1), ca=False)
    key = signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    certificate = signer.certificate.public_bytes(Encoding.PEM)
    return [eif.signed(IMAGE, key, certificate).signature]


LOCK = debian.Lock(
    snapshot="20260101T000000Z",
    packages=(debian.Package(name="a", version="1", archive="debian", path="pool/a", size=1, sha256="0" * 64),),
)
OWNER = Ed25519PrivateKey.generate()
TEE_KEY = ec.generate_private_key(ec.SECP256R1())
KBS_REQUEST = b'{"version":"0.4.0","tee":"nitro","extra-params":{"supported-hash-algorithms":["sha384"]}}'
KBS_CHALLENGE = b'{"nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","extra-params":""}'
RELEASE_POLICY = beginning("fuzz", ROOT.pem) + Grant(
    model="m", minimum_version=1, measurements=(Measurement(pcr0="01" * 48, label="x"),)
).to_toml()  # fmt: skip
LEDGER_LINE = b'{"seq":0,"time":"2026-01-01T00:00:00.000+00:00","previous":"%s","event":"start"}' % (b"0" * 64)
REPLICA = (
    b'{"schema":"cloister-replica/1","name":"n","model":{"bundled":true},"engine":{"context":256},"keys":{},"egress":[],'
    b'"release":{"service":"aws-kms","region":"eu-west-1","key":"arn"}}'
)
TENANT = tenants.Tenant(id="a", key_sha256="0a" * 32)
TENANTS = b',"tenants":[{"id":"a","key_sha256":"' + b"0a" * 32 + b'"}]}'
RESPONSE = bhttp.encode_head(200, (("a", "b"),)) + bhttp.encode_content(b"content") + bhttp.encode_end((("c", "d"),))
REQUEST = bhttp.Request(method="POST", path="/v1/x", headers=(("a", "b"),), content=b"{}", trailers=(("c", "d"),))
CHAT = b'{"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"stop":["x"],"temperature":0.5}'
RECEIPT = Receipt(
    kid="k", binding=bytes(32), number=1, request=bytes(32), response=bytes(32), commitment=bytes(32), model="m",
    time=1,
).sign(KEY.receipt_key)  # fmt: skip

ENCLAVE = {
    "EnclaveName": "n", "EnclaveID": "i-0123456789abcdef0-enc0123456789abcdef", "ProcessID": 7, "EnclaveCID": 16,
    "NumberOfCPUs": 2, "CPUIDs": [1, 5], "MemoryMiB": 512, "State": "RUNNING", "Flags": "NONE",
    "Measurements": {"HashAlgorithm": "x", "PCR0": "0a" * 48},
}  # fmt: skip


def _sealed_weights() -> list[bytes]:
    context = manifest.context("m", 1)
    key = WrappedKey(service="aws-kms", key_id="arn", ciphertext=b"w", context=context)
    made = manifest.Manifest(model="m", version=1, size=5, sha256="0" * 64, key=key)
    return [manifest.sign(made, OWNER)]


def _attestations() -> list[bytes]:
    body = {
        "runtime-data": {"nonce": "AAAA", "tee-pubkey": jwe.public_jwk(TEE_KEY.public_key())},
        "tee-evidence": {"primary_evidence": {"document": "AAAA"}, "additional_evidence": ""},
    }
    return [json.dumps(body).encode(), json.dumps({"init-data": None, **body}).encode()]


#: One module for each TEE folder, what is fetched, and what is emulated.
MORE = (
    *(emulator_targets, fetch_targets, needs_targets),
    *(snp_targets, dcap_targets, nvidia_targets, azure_targets, google_targets, ita_targets),
)

TARGETS: tuple[Target, ...] = (
    Target(
        "cms", lambda: [envelope.seal(bytes(32), RECIPIENT.public_key())],
        lambda data: void(Envelope.parse(data).open(RECIPIENT)),
    ),
    Target("aws-credentials", lambda: [CREDENTIALS], lambda data: void(credentials.decode(data))),
    Target("cbor", lambda: [ATTESTER.attest(b"", None)], lambda data: void(cbor.loads(data, "x", limit=1 << 16))),
    Target("cose", lambda: [ATTESTER.attest(b"", None)], lambda data: void(cose.Sign1.parse(data, "x", limit=1 << 16))),
    Target("nitro", lambda: [ATTESTER.attest(b"u" * 32, b"n" * 32)], _document),
    Target("inspect", _files, _inspect),
    Target("json", lambda: [_bundle(), CHAT], lambda data: void(strict_json.loads(data, "x", limit=1 << 16))),
    Target("bundle", lambda: [_bundle()], lambda data: void(verify_bundle(data, POLICY, now=NOW, nonce=NONCE))),
    Target("verdict", _verdicts, lambda data: void(Verdict.from_json(data))),
    Target("policy", lambda: [POLICY_TEXT.encode()], lambda data: void(Policy.from_toml(data))),
    Target("bhttp-request", lambda: [bhttp.encode_request(REQUEST)], lambda data: void(bhttp.decode_request(data))),
    Target("bhttp-response", lambda: [RESPONSE, bhttp.encode_response(bhttp.Response(status=200))], _response),
    Target("keyconfig", lambda: [KEY.config.encode()], lambda data: void(KeyConfig.decode(data))),
    Target("ohttp-keys", lambda: [encode_key_configs([KEY.config])], lambda data: void(decode_key_configs(data))),
    Target(
        "ohttp", lambda: [ohttp.seal_request(KEY.config, b"x").body],
        lambda data: void(ohttp.open_request(data, lambda _header: MATERIAL)),
    ),
    Target("chunked-request", lambda: [_sealed(5), _sealed(500)], _open_request),
    Target("chunked-response", _answers, _open_response),
    Target(
        "receipt", lambda: [RECEIPT.encode()],
        lambda data: void(Receipt.verify(data.decode("latin-1"), KEY.statement.receipt_key)),
    ),
    Target("chat", lambda: [CHAT], lambda data: void(requests.parse_chat(data))),
    Target("completion", lambda: [b'{"prompt":"x","n":1}'], lambda data: void(requests.parse_completion(data))),
    Target("embedding", lambda: [b'{"input":["x"]}'], lambda data: void(requests.parse_embedding(data))),
    Target("sse", lambda: [b"event: error\ndata: {}\r\n\r\n: c\ndata: [DONE]\n\n"], _events),
    Target("gguf", _models, lambda data: void(gguf.read_header(io.BytesIO(data), len(data)))),
    Target("eif", lambda: [IMAGE_FILE], _image),
    Target("eif-signature", _image_signatures, lambda data: replace(IMAGE, signature=data or b"\0").check_signature()),
    Target("debian-lock", lambda: [LOCK.to_json().encode()], lambda data: void(debian.Lock.from_json(data))),
    Target("kbs-request", lambda: [KBS_REQUEST], lambda data: void(messages.Request.parse(data))),
    Target("kbs-attestation", _attestations, lambda data: void(messages.Attestation.parse(data))),
    Target("kbs-resource", lambda: [b"m/data-key/1"], lambda data: void(Resource.parse(data.decode("latin-1")))),
    Target("kbs-challenge", lambda: [KBS_CHALLENGE], lambda data: void(kbs.read_challenge(data))),
    Target(
        "kbs-error", lambda: [b'{"type":"urn:cloister:kbs:session","detail":""}'],
        lambda data: void(kbs_errors.error_for(kbs_errors.code_of(401, data))),
    ),
    Target(
        "jwe", lambda: [json.dumps(jwe.seal(b"k" * 32, TEE_KEY.public_key())).encode()],
        lambda data: void(jwe.open_sealed(data, TEE_KEY)),
    ),
    Target("ledger", lambda: [LEDGER_LINE], lambda data: void(ledger.follow(ledger.Head(), data))),
    Target(
        "release-policy", lambda: [RELEASE_POLICY.encode()], lambda data: void(ReleasePolicy.from_toml(data)),
    ),
    Target("sealed", _sealed_weights, lambda data: void(manifest.read(data, OWNER.public_key()))),
    Target("replica", lambda: [REPLICA, REPLICA[:-1] + TENANTS], lambda data: void(boot.read(data))),
    Target("tenants", lambda: [tenants.to_toml(TENANT).encode()], lambda data: void(tenants.from_toml(data))),
    Target("parent-head", lambda: [b"GET /models/a HTTP/1.1\r\nRange: bytes=0-9"], lambda data: void(head.parse(data))),
    Target("nitro-cli", lambda: [json.dumps([ENCLAVE]).encode()], lambda data: void(nitro_cli.parse_describe(data))),
    Target("nitro-cli-run", lambda: [json.dumps(ENCLAVE).encode()], lambda data: void(nitro_cli.parse_run(data))),
    Target(
        "telemetry", lambda: [telemetry.encode("refused", {"kind": "busy", "count": 5})[:-1]],
        lambda data: void(telemetry.decode(data)),
    ),
    Target("pipe", lambda: [pack(Kind.CHUNK, 7, b"{}") * 3], lambda data: void(Unpacker().push(data))),
    *(Target(name, corpus, run) for more in MORE for name, corpus, run in more.TARGETS),
)  # fmt: skip


def void(_value: object) -> None:
    """Drop a result."""
