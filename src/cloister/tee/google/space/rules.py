"""What a policy may demand of a genuine token; debug images are refused for every policy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from cloister.errors import PolicyDocumentError, RefusedError
from cloister.tee.claims import Claims
from cloister.tee.format import Rule
from cloister.tee.google.space.evidence import Attestation, Container
from cloister.tee.google.space.verify import Verified
from cloister.wire.toml import Table

#: Audiences of tokens that every workload gets for Google's own use, without a nonce.
FORBIDDEN_AUDIENCES = ("sts.googleapis.com", "sts.google.com")
#: Not a confidential VM: whoever names it accepts any machine of Google's.
SHIELDED = "GCP_SHIELDED_VM"
#: Accepts a token that names no container, in a list of digests.
UNMEASURED = "unmeasured"
ANY = "*"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


def _attestation(claims: Claims) -> Attestation:
    assert isinstance(claims.details, Verified)
    return claims.details.attestation


def _container(claims: Claims) -> Container:
    container = _attestation(claims).container
    if container is None:
        raise RefusedError("the token speaks of no container, the policy demands things of one")
    return container


def _read_audience(table: Table) -> tuple[str, ...] | None:
    values = table.texts("audience")
    if any(host in value for value in values or () for host in FORBIDDEN_AUDIENCES):
        raise PolicyDocumentError(
            f"{table.name('audience')} names the audience of Google's token service",
            hint="Every workload gets such a token, without a nonce. Choose an audience of your own.",
        )
    return values


def _check_audience(claims: Claims, allowed: Sequence[str]) -> str:
    return _one_of("audience", _attestation(claims).audience, allowed)


def _read_image_digest(table: Table) -> tuple[str, ...] | None:
    values = table.texts("image_digest")
    if not all(value == UNMEASURED or _DIGEST.match(value) for value in values or ()):
        raise PolicyDocumentError(
            f'{table.name("image_digest")} must hold digests as "sha256:…"', hint="Copy them from the build."
        )
    return values


def _check_image_digest(claims: Claims, allowed: Sequence[str]) -> str:
    container = _attestation(claims).container
    if container is None:
        if UNMEASURED in allowed:
            return "the token names no code, and the policy accepts that"
        raise RefusedError("the token names no container image")
    if f"sha256:{container.image_digest}" not in allowed:
        raise RefusedError("another container image than the policy names")
    return container.image_digest


def _read_hwmodel(table: Table) -> tuple[str, ...] | None:
    values = table.texts("hwmodel")
    if SHIELDED in (values or ()):
        raise PolicyDocumentError(
            f"{table.name('hwmodel')} names a machine that is not confidential", hint=f"Remove {SHIELDED}."
        )
    return values


def _check_hwmodel(claims: Claims, allowed: Sequence[str]) -> str:
    return _one_of("technology", _attestation(claims).hwmodel, allowed)


def _check_swname(claims: Claims, allowed: Sequence[str]) -> str:
    return _one_of("operating system", _attestation(claims).swname, allowed)


def _check_swversion(claims: Claims, least: int) -> str:
    version = _attestation(claims).swversion
    if version is None or version < least:
        raise RefusedError("the Confidential Space image is older than the policy demands, or does not say")
    return f"{version:06}"


def _check_support(claims: Claims, wanted: Sequence[str]) -> str:
    found = _attestation(claims).support_attributes
    missing = [each for each in wanted if each not in found]
    if missing:
        raise RefusedError(f"the Confidential Space image is not {missing[0]}")
    return " ".join(found)


def _check_secure_boot(claims: Claims, _wanted: str) -> str:
    if not _attestation(claims).secure_boot:
        raise RefusedError("secure boot is off")
    return "on"


def _check_tcb_status(claims: Claims, allowed: Sequence[str]) -> str:
    status = _attestation(claims).tcb_status
    if status is None:
        raise RefusedError("the token states no TCB status")
    return _one_of("TCB status", status, allowed)


def _check_reference(claims: Claims, allowed: Sequence[str]) -> str:
    return _one_of("image reference", _container(claims).image_reference, allowed)


def _check_signatures(claims: Claims, allowed: Sequence[str]) -> str:
    for key, algorithm in _container(claims).signatures:
        if f"{algorithm}:{key}" in allowed:
            return f"{algorithm}:{key}"
    raise RefusedError("no key that the policy names has signed the container image")


def _check_restart(claims: Claims, allowed: Sequence[str]) -> str:
    return _one_of("restart policy", _container(claims).restart_policy, allowed)


def _check_args(claims: Claims, wanted: Sequence[str]) -> str:
    if _container(claims).args != tuple(wanted):
        raise RefusedError("the container was started with other arguments than the policy names")
    return f"{len(wanted)} arguments"


def _check_cmd_override(claims: Claims, _wanted: str) -> str:
    if _container(claims).cmd_override:
        raise RefusedError("the operator has replaced the container's command")
    return "none"


def _read_env(key: str) -> Callable[[Table], Mapping[str, str] | None]:
    """A table of names and values (`*` for any); the word "forbidden" is the empty table."""

    def read(table: Table) -> Mapping[str, str] | None:
        if isinstance(table.members.get(key), str):
            return {} if table.choice(key, ("forbidden",)) else None
        inner = table.table(key)
        values = {name: inner.text(name) or "" for name in inner.members}
        return values if key in table.members else None

    return read


def _check_env(claims: Claims, allowed: Mapping[str, str]) -> str:
    return _compare_env("environment", _container(claims).env, allowed)


def _check_env_override(claims: Claims, allowed: Mapping[str, str]) -> str:
    return _compare_env("overridden environment", _container(claims).env_override, allowed)


def _compare_env(what: str, seen: Mapping[str, str], allowed: Mapping[str, str]) -> str:
    """Names may be missing, none may be added or differ; no value and no unknown name is shown."""
    if any(name not in allowed or allowed[name] not in (ANY, value) for name, value in seen.items()):
        raise RefusedError(f"the container's {what} has a variable that the policy does not name, or another value")
    return f"{len(seen)} variables"


def _check_monitoring(claims: Claims, _wanted: str) -> str:
    if _attestation(claims).monitoring:
        raise RefusedError("the operator monitors memory")
    return "off"


def _instance(name: str) -> tuple[Callable[[Table], tuple[str, ...] | None], Callable[[Claims, Sequence[str]], str]]:
    """Reader and check of one property of the machine."""

    def check(claims: Claims, allowed: Sequence[str]) -> str:
        return _one_of(name.replace("_", " "), str(getattr(_attestation(claims).instance, name)), allowed)

    return lambda table: table.texts(name), check


def _check_accounts(claims: Claims, allowed: Sequence[str]) -> str:
    found = _attestation(claims).service_accounts
    if not found or not set(found) <= set(allowed):
        raise RefusedError("the workload runs with service accounts that the policy does not name")
    return f"{len(found)} accounts"


def _check_gpu(claims: Claims, wanted: str) -> str:
    mode = _attestation(claims).gpu
    if (mode or "none") != wanted:
        raise RefusedError(f"the confidential computing mode of GPUs is {mode or 'not stated'}, not {wanted}")
    return mode or "no GPU"


def _check_trusted_by(claims: Claims, allowed: Sequence[str]) -> str:
    assert isinstance(claims.details, Verified)
    return _one_of("kind of token", claims.details.trusted_by, allowed)


def _one_of(what: str, seen: str, allowed: Sequence[str]) -> str:
    if seen not in allowed:
        raise RefusedError(f"the {what} is not one that the policy names")
    return seen


def _place(number: int, name: str, example: str) -> Rule:
    read, check = _instance(name)
    return Rule(
        name=name,
        title=f"{number}. The machine's {name.replace('_', ' ')} is one that the policy names",
        example=f'[google-space] {name} = ["{example}"]',
        read=read,
        check=check,
    )


RULES: tuple[Rule, ...] = (
    Rule(
        name="audience",
        title="6. The token was made for an audience that the policy names",
        example='[google-space] audience = ["https://my.example"]',
        read=_read_audience,
        check=_check_audience,
        waivable=False,
    ),
    Rule(
        name="image_digest",
        title="7. The container image is one that the policy names",
        example='[google-space] image_digest = ["sha256:<64 hex digits>"]',
        read=_read_image_digest,
        check=_check_image_digest,
        waivable=False,
    ),
    Rule(
        name="hwmodel",
        title="8. The technology that isolates the machine is one that the policy names",
        example='[google-space] hwmodel = ["GCP_INTEL_TDX"]',
        read=_read_hwmodel,
        check=_check_hwmodel,
        waivable=False,
    ),
    Rule(
        name="swname",
        title="9. The operating system is one that the policy names",
        example='[google-space] swname = ["CONFIDENTIAL_SPACE"]',
        read=lambda table: table.choices("swname", ("CONFIDENTIAL_SPACE", "GCE")),
        check=_check_swname,
        waivable=False,
    ),
    Rule(
        name="minimum_swversion",
        title="10. The Confidential Space image is at least of that version",
        example="[google-space] minimum_swversion = 251000",
        read=lambda table: table.number("minimum_swversion", 0, 999_999),
        check=_check_swversion,
    ),
    Rule(
        name="support_attributes",
        title="11. The Confidential Space image has every attribute that the policy names",
        example='[google-space] support_attributes = ["STABLE"]',
        read=lambda table: table.choices("support_attributes", ("LATEST", "STABLE", "USABLE", "EXPERIMENTAL")),
        check=_check_support,
    ),
    Rule(
        name="secure_boot",
        title="12. Secure boot is on",
        example='[google-space] secure_boot = "required"',
        read=lambda table: table.choice("secure_boot", ("required",)),
        check=_check_secure_boot,
    ),
    Rule(
        name="tcb_status",
        title="13. Google's word on the platform's TCB is one that the policy names (TDX)",
        example='[google-space] tcb_status = ["UpToDate"]',
        read=lambda table: table.texts("tcb_status"),
        check=_check_tcb_status,
    ),
    Rule(
        name="image_reference",
        title="14. The container image comes from where the policy says",
        example='[google-space] image_reference = ["us-docker.pkg.dev/project/repository/image:tag"]',
        read=lambda table: table.texts("image_reference"),
        check=_check_reference,
    ),
    Rule(
        name="image_signatures",
        title="15. A key that the policy names has signed the container image",
        example='[google-space] image_signatures = ["ECDSA_P256_SHA256:<key id>"]',
        read=lambda table: table.texts("image_signatures"),
        check=_check_signatures,
    ),
    Rule(
        name="restart_policy",
        title="16. The launcher's restart policy is one that the policy names",
        example='[google-space] restart_policy = ["Never"]',
        read=lambda table: table.choices("restart_policy", ("Never", "OnFailure", "Always")),
        check=_check_restart,
    ),
    Rule(
        name="args",
        title="17. The container was started with exactly these arguments",
        example='[google-space] args = ["/app/serve"]',
        read=lambda table: table.texts("args"),
        check=_check_args,
    ),
    Rule(
        name="cmd_override",
        title="18. The operator has not replaced the container's command",
        example='[google-space] cmd_override = "forbidden"',
        read=lambda table: table.choice("cmd_override", ("forbidden",)),
        check=_check_cmd_override,
    ),
    Rule(
        name="env",
        title="19. The container's environment holds nothing but what the policy names",
        example='[google-space.env] HOSTNAME = "*"',
        read=_read_env("env"),
        check=_check_env,
    ),
    Rule(
        name="env_override",
        title="20. The operator has set no variables but those that the policy names",
        example='[google-space] env_override = "forbidden"',
        read=_read_env("env_override"),
        check=_check_env_override,
    ),
    Rule(
        name="monitoring",
        title="21. The operator does not monitor memory",
        example='[google-space] monitoring = "forbidden"',
        read=lambda table: table.choice("monitoring", ("forbidden",)),
        check=_check_monitoring,
    ),
    _place(22, "project_id", "my-project"),
    _place(23, "project_number", "123456789012"),
    _place(24, "zone", "us-central1-a"),
    _place(25, "instance_id", "1234567890123456789"),
    _place(26, "instance_name", "my-vm"),
    Rule(
        name="service_accounts",
        title="27. The workload runs with no service account but those that the policy names",
        example='[google-space] service_accounts = ["name@project.iam.gserviceaccount.com"]',
        read=lambda table: table.texts("service_accounts"),
        check=_check_accounts,
    ),
    Rule(
        name="gpu",
        title="28. The GPUs' confidential computing mode is on, or there are none",
        example='[google-space] gpu = "ON" or "none"',
        read=lambda table: table.choice("gpu", ("ON", "none")),
        check=_check_gpu,
    ),
    Rule(
        name="trusted_by",
        title="29. The token is believed for the reason that the policy names: the issuer's keys, or a chain",
        example='[google-space] trusted_by = ["jwks"]',
        read=lambda table: table.choices("trusted_by", ("jwks", "pki")),
        check=_check_trusted_by,
    ),
)
