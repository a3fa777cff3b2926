"""The model owner's side of AWS KMS: make the data key that weights are sealed under.

Runs on the owner's machine with the owner's credentials, never in an enclave: that is why it lies here and not beside
the enclave's half, whose signer and client it shares. The plaintext answer is protected by TLS alone, as every call of
every AWS SDK is; the key policy (`cloister policy kms --owner`) lets the owner make data keys and never decrypt one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping

from cloister.enclave.release.kms import SERVICE, blob, check_key_id, data_key
from cloister.enclave.release.kms_client import KeyArn, KmsClient
from cloister.enclave.release.sigv4 import Credentials
from cloister.errors import UndecidedError, UsageError
from cloister.weights.keys import WrappedKey

HTTPS = 443
TIMEOUT = 20.0


def own_credentials() -> Credentials:
    """From AWS_ACCESS_KEY_ID and its companions, else from whatever boto3 finds, if it is there; raises UsageError."""
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if key and secret:
        token = os.environ.get("AWS_SESSION_TOKEN") or None
        return Credentials(access_key_id=key, secret_access_key=secret, token=token)
    try:
        import boto3
    except ImportError:
        found = None
    else:
        found = boto3.Session().get_credentials()
    if found is None:
        raise UsageError(
            "no AWS credentials",
            hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or install boto3 to use ~/.aws and roles.",
        )
    frozen = found.get_frozen_credentials()
    return Credentials(
        access_key_id=str(frozen.access_key), secret_access_key=str(frozen.secret_key), token=frozen.token or None
    )


class KmsWrapper:
    """Implements weights.keys.KeyWrapper with GenerateDataKey; blocking.

    `endpoint` (`HOST` or `HOST:PORT`) replaces the regional one, `tls_roots` (PEM) the system's store.
    """

    def __init__(
        self,
        *,
        key_arn: str,
        credentials: Callable[[], Credentials] = own_credentials,
        endpoint: str | None = None,
        tls_roots: str | None = None,
    ) -> None:
        key = KeyArn.parse(key_arn)
        host, _, port = (endpoint or key.host).partition(":")
        if port and not (port.isascii() and port.isdigit()):
            raise UsageError("the KMS endpoint is not HOST or HOST:PORT")
        self._key = key

        def connect() -> socket.socket:
            try:
                return socket.create_connection((host, int(port or HTTPS)), timeout=TIMEOUT)
            except OSError as error:
                raise UndecidedError(
                    f"AWS KMS cannot be reached at {host} ({type(error).__name__})", hint="Check region and network."
                ) from None

        self._client = KmsClient(
            connect, credentials, host=host, authority=endpoint, region=key.region, tls_roots=tls_roots
        )

    def generate(self, context: Mapping[str, str]) -> tuple[bytes, WrappedKey]:
        """A fresh data key (32 bytes) and its wrapped form; raises ReleaseDeniedError or UndecidedError."""
        answer = self._client.call(
            "GenerateDataKey",
            {"KeyId": self._key.text, "KeySpec": "AES_256", "EncryptionContext": dict(context)},
        )
        check_key_id(answer, self._key.text)
        ciphertext = blob(answer, "CiphertextBlob")
        key = data_key(blob(answer, "Plaintext"))
        return key, WrappedKey(service=SERVICE, key_id=self._key.text, ciphertext=ciphertext, context=dict(context))
