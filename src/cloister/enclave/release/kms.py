"""Key release by AWS KMS: the enclave shows its attestation document and gets the data key, sealed to a key of its own.

1. Make an RSA key that lives for this one call.
2. Have the Nitro security module sign a document that holds its public half.
3. Ask KMS, over TLS that ends here, to decrypt the wrapped key *for that document* (`Recipient`).
4. KMS checks the document and the key policy's kms:RecipientAttestation conditions, and encrypts to the public key.
5. Open the envelope; check that it came from the key that was asked for.

Source: "Cryptographic attestation support in AWS KMS", AWS KMS Developer Guide; Decrypt and GenerateDataKey in the API
Reference. The nonce that a verifier would send is missing from this protocol: what makes a replayed document worthless
is that its private key is gone.
"""

from __future__ import annotations

import base64
import binascii
import socket
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.enclave.net import Dial, egress
from cloister.enclave.release.cms import Envelope
from cloister.enclave.release.kms_client import KeyArn, KmsClient
from cloister.enclave.release.sigv4 import Credentials
from cloister.errors import CloisterError, ReleaseDeniedError, UndecidedError, UsageError
from cloister.weights.keys import KEY_BYTES, WrappedKey

SERVICE = "aws-kms"
HTTPS = 443
MAX_CIPHERTEXT = 6144


class KmsRelease:
    """Implements weights.keys.KeyRelease inside a Nitro enclave; blocking.

    `attest` turns a DER SubjectPublicKeyInfo into an attestation document that holds it. `credentials` is asked before
    every attempt. `endpoint_host` replaces the regional endpoint (FIPS, a VPC endpoint, the lab's emulator);
    `tls_roots` (PEM) replaces the system's store.
    """

    def __init__(
        self,
        dial: Dial,
        *,
        region: str,
        key_arn: str,
        attest: Callable[[bytes], bytes],
        credentials: Callable[[], Credentials],
        endpoint_host: str | None = None,
        tls_roots: str | None = None,
    ) -> None:
        key = KeyArn.parse(key_arn)
        if key.region != region:
            raise UsageError(
                "the KMS key lies in another region than the one given", hint="Compare region and key ARN."
            )
        host = endpoint_host or key.host
        self._key = key
        self._attest = attest

        def connect() -> socket.socket:
            return egress(dial, host, HTTPS)

        self._client = KmsClient(connect, credentials, host=host, region=region, tls_roots=tls_roots)

    def release(self, wrapped: WrappedKey) -> bytes:
        """The data key (32 bytes); raises ReleaseDeniedError or UndecidedError."""
        if wrapped.service != SERVICE or wrapped.key_id != self._key.text:
            raise ReleaseDeniedError(
                "the manifest names another key or service than this replica's measured configuration",
                hint="Seal the weights under the KMS key that the image is configured for, or change the image.",
            )
        private, recipient = self._recipient()
        answer = self._client.call(
            "Decrypt",
            {
                "CiphertextBlob": base64.b64encode(wrapped.ciphertext).decode("ascii"),
                "EncryptionContext": dict(wrapped.context),
                "KeyId": self._key.text,
                "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
                "Recipient": recipient,
            },
        )
        return self._open(answer, private)

    def generate(self, context: Mapping[str, str]) -> tuple[bytes, WrappedKey]:
        """A fresh data key that nobody outside sees, for what the enclave stores itself (a weights.keys.KeyWrapper)."""
        private, recipient = self._recipient()
        answer = self._client.call(
            "GenerateDataKey",
            {
                "KeyId": self._key.text,
                "KeySpec": "AES_256",
                "EncryptionContext": dict(context),
                "Recipient": recipient,
            },
        )
        ciphertext = blob(answer, "CiphertextBlob")
        key = self._open(answer, private)
        return key, WrappedKey(service=SERVICE, key_id=self._key.text, ciphertext=ciphertext, context=dict(context))

    def _recipient(self) -> tuple[rsa.RSAPrivateKey, dict[str, str]]:
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        document = self._attest(private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        return private, {
            "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
            "AttestationDocument": base64.b64encode(document).decode("ascii"),
        }

    def _open(self, answer: Mapping[str, object], private: rsa.RSAPrivateKey) -> bytes:
        check_key_id(answer, self._key.text)
        if answer.get("Plaintext"):
            # A service that ignores `Recipient` checks no attestation: its answer proves that others could ask too.
            raise UndecidedError(
                "the key service answered in the clear although it was shown an attestation document",
                hint="This is not AWS KMS: an emulator without attestation must not release keys.",
            )
        try:
            return data_key(Envelope.parse(blob(answer, "CiphertextForRecipient")).open(private))
        except UndecidedError:
            raise
        except CloisterError as error:
            raise UndecidedError(f"the answer of AWS KMS does not hold: {error.message}", hint=error.hint) from None


def check_key_id(answer: Mapping[str, object], key_arn: str) -> None:
    """KMS says which key it used; raises ReleaseDeniedError where it is another."""
    if answer.get("KeyId") != key_arn:
        raise ReleaseDeniedError(
            "AWS KMS used another key than the one asked for", hint="Compare the key ARN with the key policy's key."
        )


def data_key(plaintext: bytes) -> bytes:
    """Exactly 32 bytes, else UndecidedError."""
    if len(plaintext) != KEY_BYTES:
        raise UndecidedError(
            "what AWS KMS released is not a 32-byte key", hint="The wrapped key must come from GenerateDataKey AES_256."
        )
    return plaintext


def blob(answer: Mapping[str, object], name: str) -> bytes:
    """A base64 member of a KMS answer; raises UndecidedError."""
    value = answer.get(name)
    try:
        if not isinstance(value, str) or not value:
            raise ValueError
        data = base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        raise UndecidedError(f"the answer of AWS KMS has no {name}") from None
    if len(data) > MAX_CIPHERTEXT:
        raise UndecidedError(f"the answer of AWS KMS has too long a {name}")
    return data
