"""Intel's Provisioning Certification Service, version 4, or a PCCS that answers like it.

Four answers make one item with the members of dcap-qvl's QuoteCollateralV3: the two signed texts byte for
byte, their signatures and both lists in hex, the issuers' chains in PEM.
"""

from __future__ import annotations

import json
import re
from datetime import timedelta
from urllib.parse import unquote_to_bytes

from cloister.errors import MalformedError, NotGenuineError
from cloister.trust.certificates import MAX_CRL, common_name, load_certificate
from cloister.trust.dcap.collateral import Endorsements
from cloister.trust.dcap.pck import CAS
from cloister.trust.fetch.http import Answer, Http
from cloister.trust.fetch.source import Source, certificates, crl_life, parameter
from cloister.trust.need import Life, Need
from cloister.wire import strict_json
from cloister.wire.strict_json import Fields

BASE = "https://api.trustedservices.intel.com"
#: Intel's own service gives the root's list elsewhere than a PCCS.
ROOT_CRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
MAX_TEXT = 256 * 1024
WHAT = "Intel collateral"
_QE = {"sgx": "QE", "tdx": "TD_QE"}
_ROOT = "Intel SGX Root CA"
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")


def collateral(need: Need, base: str) -> Source:
    """`tee` (sgx, tdx), `fmspc` (12 hex digits) and `ca` (processor, platform): both are in the PCK certificate."""
    tee = parameter(need, "tee", "sgx|tdx")
    fmspc = parameter(need, "fmspc", "[0-9a-f]{12}")
    ca = parameter(need, "ca", "processor|platform")
    own = f"{base}/{tee}/certification/v4"
    shared = f"{base}/sgx/certification/v4"

    def load(http: Http) -> bytes:
        tcb = http.get(f"{own}/tcb?fmspc={fmspc.upper()}", limit=MAX_TEXT)
        identity = http.get(f"{own}/qe/identity", limit=MAX_TEXT)
        pck = http.get(f"{shared}/pckcrl?ca={ca}&encoding=der", limit=2 * MAX_CRL)
        root = http.get(ROOT_CRL if base == BASE else f"{shared}/rootcacrl", limit=2 * MAX_CRL)
        tcb_info, tcb_signature = signed_text(tcb.body, "tcbInfo")
        qe_identity, qe_signature = signed_text(identity.body, "enclaveIdentity")
        members = {
            "pck_crl_issuer_chain": _header(pck, "sgx-pck-crl-issuer-chain"),
            "root_ca_crl": _der(root.body).hex(),
            "pck_crl": _der(pck.body).hex(),
            "tcb_info_issuer_chain": _header(tcb, "tcb-info-issuer-chain"),
            "tcb_info": tcb_info,
            "tcb_info_signature": tcb_signature,
            "qe_identity_issuer_chain": _header(identity, "sgx-enclave-identity-issuer-chain"),
            "qe_identity": qe_identity,
            "qe_identity_signature": qe_signature,
        }
        return json.dumps(members).encode()

    return Source(
        key=f"{own} fmspc={fmspc} ca={ca}",
        load=load,
        life=lambda data, _: life(data, tee=tee, fmspc=fmspc, ca=ca),
        fresh=timedelta(days=1),
    )


def life(data: bytes, *, tee: str, fmspc: str, ca: str) -> Life:
    """What all parts have in common: from the youngest's beginning to the first end."""
    item = Endorsements.parse(data)
    tcb, identity = item.tcb_info, item.qe_identity
    if (tcb.id, item.fmspc) != (tee.upper(), fmspc):
        raise NotGenuineError(f"{WHAT}: the TCB info of another platform")
    if identity.id != _QE[tee]:
        raise NotGenuineError(f"{WHAT}: the identity of another quoting enclave")
    lives = [Life(each.issued, each.next_update) for each in (tcb, identity)]
    lives.append(crl_life(item.pck_crl, CAS[ca], f"{WHAT}: PCK CRL"))
    lives.append(crl_life(item.root_crl, _ROOT, f"{WHAT}: root CRL"))
    for chain in (tcb.issuer_chain, identity.issuer_chain, item.pck_crl_issuer_chain):
        for der in certificates(chain.encode(), 2, f"{WHAT}: issuer chain"):
            certificate = load_certificate(der, f"{WHAT}: issuer chain")
            lives.append(Life(certificate.not_valid_before_utc, certificate.not_valid_after_utc))
        if common_name(certificate.subject) != _ROOT:
            raise NotGenuineError(f"{WHAT}: an issuer chain does not end at {_ROOT}")
    return Life(max(life.start for life in lives), min(life.until for life in lives))


def signed_text(body: bytes, name: str) -> tuple[str, str]:
    """The signed text as it stands, and the signature (hex): the text must not be written anew."""
    whole = Fields(strict_json.loads(body, WHAT, limit=MAX_TEXT), WHAT)
    found = re.fullmatch(
        rf'\s*{{\s*"{name}"\s*:\s*({{.*}})\s*,\s*"signature"\s*:\s*"([0-9a-fA-F]{{128}})"\s*}}\s*',
        body.decode(),
        re.DOTALL,
    )
    if found is None or strict_json.loads(found[1].encode(), WHAT, limit=MAX_TEXT) != whole.value(name):
        raise MalformedError(f"{WHAT}: not {name} and its signature")
    return found[1], found[2]


def _header(answer: Answer, name: str) -> str:
    """A chain in a header, percent-encoded PEM."""
    chain = unquote_to_bytes(answer.headers.get(name, ""))
    certificates(chain, 2, f"{WHAT}: header {name}")
    return chain.decode("ascii")


def _der(body: bytes) -> bytes:
    """A list in DER, or in hex as PCCS gives it."""
    text = body.decode("latin-1").strip()
    return bytes.fromhex(text) if _HEX.fullmatch(text) else body
