"""The certificate of a vTPM's attestation key, and the virtual machine that it names."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509

from cloister.errors import MalformedError, NotGenuineError, UndecidedError
from cloister.trust.anchors import Anchor
from cloister.trust.certificates import load_certificate
from cloister.trust.chain import Profile
from cloister.trust.signatures import Algorithm
from cloister.wire.reader import Reader

#: GCE's instance identifier: an arc of Google's own.
INSTANCE_OID = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.1.21")
PROFILE = Profile(
    algorithms=frozenset({Algorithm.RSA_PKCS1_SHA256}),
    rooted=False,
    # The older certificates name the TPM's maker and model there, as the TCG's credential profile wants.
    understood=frozenset({x509.ObjectIdentifier("2.5.29.17")}),
)
MAX_CHAIN = 4
_INTEGER, _BOOLEAN, _UTF8, _SEQUENCE, _CONTEXT = 0x02, 0x01, 0x0C, 0x30, 0xA0
_WHAT = "attestation key certificate"


@dataclass(frozen=True, kw_only=True)
class Instance:
    """The machine that a key's certificate is for.

    `production` tells Google's real environment from others of its own, `security_version` is Google's number.
    """

    zone: str
    project_number: int
    project_id: str
    instance_id: int
    instance_name: str
    security_version: int
    production: bool

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Instance:
        """Read the extension; raises NotGenuineError where there is none, MalformedError."""
        for extension in certificate.extensions:
            if extension.oid == INSTANCE_OID:
                assert isinstance(extension.value, x509.UnrecognizedExtension)
                return cls.parse(extension.value.value)
        raise NotGenuineError("the key's certificate does not name a virtual machine")

    @classmethod
    def parse(cls, der: bytes) -> Instance:
        """SEQUENCE { zone, projectNumber, projectId, instanceId, instanceName, [0] properties }, DER."""
        body = _sequence(der)
        zone, project_number, project_id = _utf8(body), _integer(body), _utf8(body)
        instance_id, name = _integer(body), _utf8(body)
        version, production = 0, False
        if body.remaining:
            inner = _sequence(_element(body, _CONTEXT))
            seen = -1
            while inner.remaining:
                tag = inner.uint(1, "tag")
                number, value = tag - _CONTEXT, Reader(_value(inner), _WHAT)
                if not seen < number < 0x1F:
                    raise MalformedError(f"{_WHAT}: properties out of order")
                seen = number
                if number == 0:
                    version = _integer(value)
                elif number == 1:
                    production = _boolean(value)
                else:  # properties that Google has not described
                    value.rest()
                value.end()
        body.end()
        return cls(
            zone=zone,
            project_number=project_number,
            project_id=project_id,
            instance_id=instance_id,
            instance_name=name,
            security_version=version,
            production=production,
        )


def load(der: bytes) -> x509.Certificate:
    """One certificate of a vTPM's chain; raises MalformedError. The one place that meets Google's long names.

    The older intermediates have a common name of more than the 64 characters that X.520 allows, so a warning comes.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attribute's length must be", UserWarning)
        return load_certificate(der, _WHAT)


def path(
    leaf: x509.Certificate, others: Iterable[x509.Certificate], anchors: Sequence[Anchor]
) -> tuple[x509.Certificate, ...]:
    """Those of `others` that lead from an anchor to `leaf`, nearest to the anchor first.

    Names choose; `chain.validate` decides. Raises UndecidedError where one is missing.
    """
    known = {anchor.subject for anchor in anchors}
    by_name: dict[str, x509.Certificate] = {}
    for other in others:
        by_name.setdefault(other.subject.rfc4514_string(), other)
    found: list[x509.Certificate] = []
    issuer = leaf.issuer.rfc4514_string()
    while issuer not in known:
        if issuer not in by_name or len(found) == MAX_CHAIN:
            raise UndecidedError(
                "the certificate of the attestation key's issuer is missing, or its root is not known here",
                hint="The key's certificate says where its issuer's is (authority information access).",
            )
        found.insert(0, by_name[issuer])
        issuer = found[0].issuer.rfc4514_string()
    return tuple(found)


def _sequence(der: bytes) -> Reader:
    reader = Reader(der, _WHAT)
    body = _element(reader, _SEQUENCE)
    reader.end()
    return Reader(body, _WHAT)


def _element(reader: Reader, tag: int) -> bytes:
    if reader.uint(1, "tag") != tag:
        raise MalformedError(f"{_WHAT}: an instance of another shape")
    return _value(reader)


def _value(reader: Reader) -> bytes:
    """A DER length of at most 64 KiB, in its shortest form, and what it counts."""
    size = reader.uint(1, "length")
    if size >= 0x80:
        count = size & 0x7F
        if not 1 <= count <= 2:
            raise MalformedError(f"{_WHAT}: a length that is not DER")
        size = reader.uint(count, "length")
        if size < (0x80 if count == 1 else 0x100):
            raise MalformedError(f"{_WHAT}: a length that is not DER")
    return reader.take(size, "value")


def _integer(reader: Reader) -> int:
    """A non-negative INTEGER of at most 64 bits in its shortest form."""
    data = _element(reader, _INTEGER)
    if not 1 <= len(data) <= 9 or data[0] & 0x80 or (len(data) > 1 and not data[0] and not data[1] & 0x80):
        raise MalformedError(f"{_WHAT}: not a whole number in DER")
    return int.from_bytes(data, "big")


def _boolean(reader: Reader) -> bool:
    data = _element(reader, _BOOLEAN)
    if data not in (b"\x00", b"\xff"):
        raise MalformedError(f"{_WHAT}: neither true nor false in DER")
    return data == b"\xff"


def _utf8(reader: Reader) -> str:
    try:
        text = _element(reader, _UTF8).decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedError(f"{_WHAT}: text that is not UTF-8") from None
    if not text.isprintable() or len(text) > 256:
        raise MalformedError(f"{_WHAT}: text that cannot be shown")
    return text
