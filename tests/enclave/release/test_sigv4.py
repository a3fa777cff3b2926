"""AWS's published test suite, and botocore as an independent signer."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.enclave.release.sigv4 import Credentials, signed_headers

# aws-sig-v4-test-suite: its key, time, region and service.
SUITE = Credentials(access_key_id="AKIDEXAMPLE", secret_access_key="wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
WHEN = datetime(2015, 8, 30, 12, 36, 0, tzinfo=UTC)
HOST = {"host": "example.amazonaws.com"}


@pytest.mark.parametrize(
    ("method", "headers", "body", "expected"),
    [
        ("GET", HOST, b"", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("POST", HOST, b"", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        (
            "POST",
            HOST | {"content-type": "application/x-www-form-urlencoded"},
            b"Param1=value1",
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
        (
            "GET",
            HOST | {"my-header1": " value1", "my-header2": ' "a   b   c"'},
            b"",
            "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        ),
    ],
    ids=["get-vanilla", "post-vanilla", "post-x-www-form-urlencoded", "get-header-value-trim"],
)
def test_published_suite(method: str, headers: dict[str, str], body: bytes, expected: str) -> None:
    signed = signed_headers(SUITE, headers, body, region="us-east-1", service="service", now=WHEN, method=method)
    assert signed["authorization"].endswith(f"Signature={expected}")
    assert "Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request" in signed["authorization"]


names = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True).filter(
    lambda name: name not in ("host", "authorization", "expect", "user-agent", "transfer-encoding", "x-amzn-trace-id",
                              "connection", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256")
)  # fmt: skip
values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)


@given(
    headers=st.dictionaries(names, values, max_size=4),
    body=st.binary(max_size=200),
    secret=st.from_regex(r"[A-Za-z0-9/+]{40}", fullmatch=True),
    token=st.none() | st.from_regex(r"[A-Za-z0-9/+=]{1,80}", fullmatch=True),
)
def test_botocore_signs_alike(headers: dict[str, str], body: bytes, secret: str, token: str | None) -> None:
    auth = pytest.importorskip("botocore.auth")
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials as Botocore

    ours = signed_headers(
        Credentials(access_key_id="AKIDEXAMPLE", secret_access_key=secret, token=token),
        {"Host": "kms.eu-west-1.amazonaws.com", **headers}, body, region="eu-west-1", service="kms", now=WHEN,
    )  # fmt: skip
    request = AWSRequest("POST", "https://kms.eu-west-1.amazonaws.com/", headers=headers, data=body)
    signer = auth.SigV4Auth(Botocore("AKIDEXAMPLE", secret, token), "kms", "eu-west-1")
    request.context["timestamp"] = "20150830T123600Z"
    signer._modify_request_before_signing(request)
    canonical = signer.canonical_request(request)
    signature = signer.signature(signer.string_to_sign(request, canonical), request)
    assert ours["authorization"].endswith(f"Signature={signature}")


def test_secrets_stay_out_of_the_repr() -> None:
    shown = repr(Credentials(access_key_id="AKIDEXAMPLE", secret_access_key="s3cr3t", token="t0k3n"))
    assert "s3cr3t" not in shown
    assert "t0k3n" not in shown
