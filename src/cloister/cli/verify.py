"""`cloister verify`: is it genuine, and does my policy accept it?"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cloister.channel.bundle import MAX_BUNDLE
from cloister.cli import show
from cloister.client.appraisal import verify_bundle
from cloister.client.fetch import challenge
from cloister.errors import CloisterError, RefusedError, UsageError
from cloister.policy.verdict import Verdict
from cloister.wire import strict_json
from cloister.wire.strict_json import decode_base64url

MAX_MEASUREMENTS = 1024 * 1024


@show.guarded
def verify(
    target: Annotated[str, typer.Argument(metavar="URL|FILE", help="A replica's address, or a saved bundle.")],
    policy: Annotated[Path, typer.Option("--policy", "-p", help="The policy document (TOML).")],
    json: Annotated[bool, typer.Option("--json", help="The verdict as JSON on standard output.")] = False,
    save: Annotated[Path | None, typer.Option(help="Keep the received bundle in this file.")] = None,
    nonce: Annotated[str | None, typer.Option(help="For a saved bundle: the nonce it must answer (base64url).")] = None,
    measurements: Annotated[
        Path | None, typer.Option(help="measurements.json of a build: the registers must be these too.")
    ] = None,
    at: Annotated[str | None, typer.Option(help="For a saved bundle: the time of the check (ISO 8601).")] = None,
) -> None:
    """Appraise a replica's evidence, check by check. Exit code 0 only if the policy accepts it."""
    document = show.load_policy(policy)
    try:
        if target.startswith(("http://", "https://")):
            if nonce is not None or at is not None:
                raise UsageError("--nonce and --at are for saved bundles", hint="A live check makes its own.")
            data, asked = challenge(target, document, limit=MAX_BUNDLE)
            if save is not None:
                save.write_bytes(data)
            verdict = verify_bundle(data, document, now=datetime.now(UTC), nonce=asked).verdict
        else:
            given = decode_base64url(nonce, "--nonce") if nonce is not None else None
            verdict = verify_bundle(
                _read(Path(target)), document, now=_time(at) or datetime.now(UTC), nonce=given
            ).verdict
    except CloisterError as error:
        if error.verdict is not None:
            _print(error.verdict, as_json=json)
        raise
    _print(verdict, as_json=json)
    if measurements is not None:
        _compare(verdict, _read(measurements))


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
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="Give a URL or a saved bundle.") from None


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError("--at is not an ISO 8601 time", hint="For example 2026-01-31T12:00:00Z.") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
