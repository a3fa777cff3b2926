"""A stand-in for Intel's Provisioning Certification Service, for one platform, under a root of its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from tests.trust.services import Call, Reply

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


@cache
def key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def certificate(subject: str, issuer: str, end: datetime = NOW + 1000 * DAY) -> bytes:
    builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).serial_number(7)
    builder = builder.public_key(key(subject).public_key()).not_valid_before(NOW - 900 * DAY).not_valid_after(end)
    return builder.sign(key(issuer), SHA256()).public_bytes(Encoding.PEM)


def crl(issuer: str, end: datetime = NOW + 20 * DAY) -> bytes:
    builder = x509.CertificateRevocationListBuilder().issuer_name(name(issuer)).last_update(NOW - DAY).next_update(end)
    return builder.sign(key(issuer), SHA256()).public_bytes(Encoding.DER)


ROOT, TCB_SIGNER = "Intel SGX Root CA", "Intel SGX TCB Signing"
CAS = {"platform": "Intel SGX PCK Platform CA", "processor": "Intel SGX PCK Processor CA"}
FMSPC = "90c06f000000"


class Pcs:
    """Intel's service for one platform; `form` is how a list is sent: DER or hex. Members are replaced by tests."""

    def __init__(self) -> None:
        self.tcb_end, self.crl_end = NOW + 30 * DAY, NOW + 20 * DAY
        self.hex = False
        self.replies: dict[str, Reply] = {}
        self.fmspc = FMSPC
        self.signer_end = NOW + 1000 * DAY

    def text(self, what: str, end: datetime) -> str:
        # Spaces and order as no encoder of ours would write them: the text must come through as it is.
        stamp = "%Y-%m-%dT%H:%M:%SZ"
        return f'{{"id":"{what}", "version":3,"issueDate":"{NOW - DAY:{stamp}}","nextUpdate":"{end:{stamp}}","fmspc":"{self.fmspc}","pceId":"0000","tcbEvaluationDataNumber":17}}'

    def _chain(self, name: str) -> str:
        return quote((certificate(name, ROOT, self.signer_end) + certificate(ROOT, ROOT)).decode())

    def _list(self, issuer: str) -> bytes:
        return crl(issuer, self.crl_end).hex().encode() if self.hex else crl(issuer, self.crl_end)

    def __call__(self, call: Call) -> Reply:
        tee, part = call.route.lstrip("/").split("/certification/v4/")
        if part in self.replies:
            return self.replies[part]
        if part == "tcb" and call.query == {"fmspc": self.fmspc.upper()}:
            text = self.text(tee.upper(), self.tcb_end)
            body = f'{{"tcbInfo":{text},"signature":"{"ab" * 64}"}}'
            return Reply(body=body.encode(), headers={"TCB-Info-Issuer-Chain": self._chain(TCB_SIGNER)})
        if part == "qe/identity":
            text = self.text("TD_QE" if tee == "tdx" else "QE", NOW + 30 * DAY)
            body = f'{{"enclaveIdentity":{text},"signature":"{"cd" * 64}"}}'
            return Reply(body=body.encode(), headers={"SGX-Enclave-Identity-Issuer-Chain": self._chain(TCB_SIGNER)})
        if part == "pckcrl" and tee == "sgx" and call.query["encoding"] == "der":
            name = CAS[call.query["ca"]]
            return Reply(body=self._list(name), headers={"SGX-PCK-CRL-Issuer-Chain": self._chain(name)})
        if part == "rootcacrl" and tee == "sgx":
            return Reply(body=self._list(ROOT))
        return Reply(404)


def stored(members: dict[str, str]) -> Pcs:
    """A service that gives collateral which somebody has kept (as dcap-qvl names its members), whatever is asked for."""

    def signed(name: str, member: str, header: str) -> Reply:
        body = f'{{"{member}":{members[name]},"signature":"{members[f"{name}_signature"]}"}}'
        return Reply(body=body.encode(), headers={header: quote(members[f"{name}_issuer_chain"])})

    found = Pcs()
    found.replies = {
        "tcb": signed("tcb_info", "tcbInfo", "TCB-Info-Issuer-Chain"),
        "qe/identity": signed("qe_identity", "enclaveIdentity", "SGX-Enclave-Identity-Issuer-Chain"),
        "pckcrl": Reply(
            body=bytes.fromhex(members["pck_crl"]),
            headers={"SGX-PCK-CRL-Issuer-Chain": quote(members["pck_crl_issuer_chain"])},
        ),
        "rootcacrl": Reply(body=members["root_ca_crl"].encode()),
    }
    return found
