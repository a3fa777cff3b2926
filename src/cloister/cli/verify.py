"""`cloister verify`: is it genuine, and does my policy accept it? A replica, a saved bundle, or evidence by itself."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cloister.channel.bundle import MAX_BUNDLE, MAX_EVIDENCE
from cloister.cli import show
from cloister.client.appraisal import verify_bundle
from cloister.client.fetch import challenge
from cloister.errors import CloisterError, RefusedError, UsageError
from cloister.policy.appraise import Expected, appraise_evidence
from cloister.policy.document import Policy
from cloister.policy.verdict import Verdict
from cloister.tee import registry
from cloister.tee.evidence import Offers
from cloister.trust.collateral import Collateral
from cloister.wire import strict_json
from cloister.wire.strict_json import decode_base64url

MAX_MEASUREMENTS = 1024 * 1024
#: Reasons that a verdict shows are sentences.
MIN_REASON = 8


@show.guarded
def verify(
    target: Annotated[str, typer.Argument(metavar="URL|FILE", help="A replica's address, or a file.")],
    policy: Annotated[Path, typer.Option("--policy", "-p", help="The policy document (TOML).")],
    tee: Annotated[
        str | None, typer.Option(help="The file is evidence of this format by itself; otherwise it is a saved bundle.")
    ] = None,
    user_data: Annotated[
        str | None, typer.Option(help="With --tee: the user data or report data that it must carry (hex).")
    ] = None,
    nonce: Annotated[
        str | None, typer.Option(help="The nonce that a file must answer: base64url in a bundle, hex with --tee.")
    ] = None,
    unbound: Annotated[
        str | None, typer.Option(help="With --tee: do not compare user data and nonce, for this reason.")
    ] = None,
    collateral: Annotated[
        Path | None, typer.Option(help="A folder of endorsements, revocation lists, issuers' keys: KIND.* files.")
    ] = None,
    at: Annotated[str | None, typer.Option(help="For a file: the time of the check (ISO 8601).")] = None,
    measurements: Annotated[
        Path | None, typer.Option(help="measurements.json of a build: the registers must be these too.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Keep the received bundle in this file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="The verdict as JSON on standard output.")] = False,
) -> None:
    """Appraise evidence, check by check. Exit code 0 only if the policy accepts it."""
    document = show.load_policy(policy)
    own = Collateral.from_folder(collateral) if collateral is not None else Collateral()
    if tee is None and (user_data is not None or unbound is not None):
        raise UsageError("--user-data and --unbound are for evidence by itself", hint="Say which: --tee FORMAT.")
    try:
        if tee is not None:
            expected = _expected(user_data, nonce, unbound)
            verdict = _evidence(Path(target), tee, expected, document, own, _time(at) or datetime.now(UTC))
        elif target.startswith(("http://", "https://")):
            if nonce is not None or at is not None:
                raise UsageError("--nonce and --at are for files", hint="A live check makes its own.")
            data, asked = challenge(target, document, limit=MAX_BUNDLE)
            if save is not None:
                save.write_bytes(data)
            verdict = verify_bundle(data, document, now=datetime.now(UTC), nonce=asked, collateral=own).verdict
        else:
            given = decode_base64url(nonce, "--nonce") if nonce is not None else None
            verdict = verify_bundle(
                _read(Path(target)), document, now=_time(at) or datetime.now(UTC), nonce=given, collateral=own
            ).verdict
    except CloisterError as error:
        if error.verdict is not None:
            _print(error.verdict, as_json=json)
        raise
    _print(verdict, as_json=json)
    if measurements is not None:
        _compare(verdict, _read(measurements))


def _evidence(
    file: Path, tee: str, expected: Expected, policy: Policy, collateral: Collateral, now: datetime
) -> Verdict:
    form = registry.get(tee)
    data = _read(file)
    if len(data) > MAX_EVIDENCE:
        raise UsageError(f"{file} has more than {MAX_EVIDENCE} bytes", hint="That is no evidence of any format.")
    offers = Offers.one(form.media_type, data, role=form.role)
    return appraise_evidence(offers, expected, policy, now=now, collateral=collateral)


def _expected(user_data: str | None, nonce: str | None, unbound: str | None) -> Expected:
    """What the caller wants bound; saying nothing at all is an error, because evidence of anything would do."""
    if (unbound is None) == (user_data is None and nonce is None):
        raise UsageError(
            "say what the evidence must carry: --user-data and --nonce, or --unbound REASON",
            hint="Without a comparison evidence says that some TEE exists, and nothing about a key.",
        )
    if unbound is not None:
        if len(unbound.strip()) < MIN_REASON or not unbound.isprintable():
            raise UsageError("--unbound must say why, in a sentence", hint="The verdict prints it.")
        return Expected(unbound=unbound.strip())
    try:
        return Expected(
            user_data=bytes.fromhex(user_data) if user_data is not None else None,
            nonce=bytes.fromhex(nonce) if nonce is not None else None,
        )
    except ValueError:
        raise UsageError("--user-data and --nonce are hexadecimal with --tee") from None


def _compare(verdict: Verdict, data: bytes) -> None:
    """Raises RefusedError unless the evidence has every register that a build predicted."""
    fields = strict_json.Fields(strict_json.loads(data, "measurements", limit=MAX_MEASUREMENTS), "measurements")
    predicted = fields.member("measurements")
    attested = verdict.measurements or {}
    differing = [name for name in sorted(predicted.names()) if attested.get(name.lower()) != predicted.text(name)]
    if differing or not predicted.names():
        raise RefusedError(
            f"the evidence has other registers than the build: {', '.join(differing) or 'it names none'}",
            hint="Another image runs there than the one you built.",
        )


def _print(verdict: Verdict, *, as_json: bool) -> None:
    if as_json:
        show.print_json(verdict.to_json())
    else:
        show.show_verdict(verdict)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="Give a URL or a file.") from None


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError("--at is not an ISO 8601 time", hint="For example 2026-01-31T12:00:00Z.") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
