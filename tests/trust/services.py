"""Stand-ins for the vendors' services: real servers on loopback that answer as they do, or misbehave as they have."""

from __future__ import annotations

import contextlib
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from tests.tee.snp import signer

from cloister.trust.fetch.cache import Cache
from cloister.trust.fetch.fetcher import Fetcher
from cloister.trust.fetch.http import Clock, Http, Limits

QUICK = Limits(connect=5, read=5, total=5, tries=3)


class Time:
    """A clock that moves when it is told to, or slept on; `slept` are the waits in seconds."""

    def __init__(self, now: datetime = signer.NOW) -> None:
        self.now = now
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += timedelta(seconds=seconds)

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.now, sleep=self.sleep, jitter=lambda: 1.0)


@dataclass
class Reply:
    """What a service says. `length` overrides Content-Length: a body that ends before it is cut."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None


@dataclass
class Call:
    """What a service was asked."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str]

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.path).query))

    @property
    def route(self) -> str:
        return urlsplit(self.path).path


Answering = Callable[[Call], Reply]


class Service:
    """A running server. `answer` may be replaced at any time; `calls` has every request."""

    def __init__(self, answer: Answering, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.calls: list[Call] = []
        #: Set when a test is over, so that whoever hangs can stop.
        self.over = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                size = int(self.headers.get("content-length", 0))
                call = Call(
                    self.command, self.path, self.rfile.read(size), {k.lower(): v for k, v in self.headers.items()}
                )
                service.calls.append(call)
                reply = service.answer(call)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body) if reply.length is None else reply.length))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(reply.body)

            do_GET = do_POST = _serve  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def serving(answer: Answering, tls: ssl.SSLContext | None = None) -> Iterator[Service]:
    """A server for the block."""
    service = Service(answer, tls)
    try:
        yield service
    finally:
        service.close()


def fetcher(folder: Path, time: Time, *, base: str | None = None, limits: Limits = QUICK, **options: object) -> Fetcher:
    """With its cache in the folder, and every kind at one address."""
    kinds = (
        "amd-vcek",
        "amd-ask",
        "amd-crl",
        "intel-collateral",
        "nvidia-rim",
        "nvidia-ocsp",
        "ita-certs",
        "ita-crl",
        "jwks",
    )
    bases = dict.fromkeys(kinds, base) if base is not None else {}
    http = Http(clock=time.clock, limits=limits)
    return Fetcher(Cache(folder), http=http, clock=time.clock, bases=bases, **options)  # type: ignore[arg-type]


def pem(*ders: bytes) -> bytes:
    """Certificates in PEM."""
    return b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in ders)


class Kds:
    """AMD's service: knows one chip of each product at one TCB, answers in its formats, counts; may throttle."""

    def __init__(self) -> None:
        self.busy: list[Reply] = []
        self.crl: Callable[[str], bytes] = signer.revocations
        self.vcek: Callable[[str], bytes] = signer.endorsement
        self.intermediate = signer.intermediate

    def __call__(self, call: Call) -> Reply:
        if self.busy:
            return self.busy.pop(0)
        found = re.fullmatch(r"/(vcek|vlek)/v1/(Milan|Genoa|Turin)/([a-z0-9_]+)", call.route)
        if found is None:
            return Reply(404, b"not found")
        kind, product, what = found.groups()
        if what == "crl":
            return Reply(body=self.crl(product))
        if what == "cert_chain":
            return Reply(body=pem(self.intermediate(product, vlek=kind == "vlek"), signer._root(f"ARK-{product}")))
        names = ("fmcSPL", "blSPL", "teeSPL", "snpSPL", "ucodeSPL")
        wanted = {name: f"{value:02d}" for name, value in zip(names, signer.TCB, strict=True)}
        if product != "Turin":
            del wanted["fmcSPL"]
        if kind != "vcek" or what != signer.CHIP[product].hex() or call.query != wanted:
            return Reply(404, b"no such chip")
        return Reply(body=self.vcek(product))


def tls_pair(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context for 127.0.0.1 under a CA of its own, and a client's that trusts it."""
    now = datetime.now(UTC)
    ca, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's CA")])

    def build(
        subject: x509.Name, public: ec.EllipticCurvePublicKey, *extensions: x509.ExtensionType
    ) -> x509.Certificate:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(name).public_key(public)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(ca, SHA256())

    root = build(
        name,
        ca.public_key(),
        x509.BasicConstraints(True, None),
        x509.SubjectKeyIdentifier.from_public_key(ca.public_key()),
    )
    leaf = build(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a service")]),
        key.public_key(),
        x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key()),
    )
    (folder / "ca.pem").write_bytes(root.public_bytes(Encoding.PEM))
    (folder / "leaf.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "leaf.pem", folder / "key.pem")
    return server, ssl.create_default_context(cadata=root.public_bytes(Encoding.PEM).decode())
