"""`cloister verify`: is it genuine, and does my policy accept it?"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import httpx2
import typer

from cloister.channel.bundle import MAX_BUNDLE
from cloister.cli import show
from cloister.client.appraisal import verify_bundle
from cloister.client.session import OuterRequest, Session
from cloister.client.transport import parse_address
from cloister.errors import CloisterError, UndecidedError, UsageError
from cloister.policy.verdict import Verdict
from cloister.wire.strict_json import decode_base64url


def _fetch(url: str, request: OuterRequest) -> tuple[int, bytes]:
    target = parse_address(url).join(request.path)
    try:
        with httpx2.Client(timeout=15) as client:
            response = client.request(request.method, target, headers=dict(request.headers), content=request.body)
    except httpx2.TransportError as error:
        raise UndecidedError(f"the replica cannot be reached ({type(error).__name__})") from None
    return response.status_code, response.content


@show.guarded
def verify(
    target: Annotated[str, typer.Argument(metavar="URL|FILE", help="A replica's address, or a saved bundle.")],
    policy: Annotated[Path, typer.Option("--policy", "-p", help="The policy document (TOML).")],
    json: Annotated[bool, typer.Option("--json", help="The verdict as JSON on standard output.")] = False,
    save: Annotated[Path | None, typer.Option(help="Keep the received bundle in this file.")] = None,
    nonce: Annotated[str | None, typer.Option(help="For a saved bundle: the nonce it must answer (base64url).")] = None,
    at: Annotated[str | None, typer.Option(help="For a saved bundle: the time of the check (ISO 8601).")] = None,
) -> None:
    """Appraise a replica's evidence, check by check. Exit code 0 only if the policy accepts it."""
    document = show.load_policy(policy)
    try:
        if target.startswith(("http://", "https://")):
            if nonce is not None or at is not None:
                raise UsageError("--nonce and --at are for saved bundles", hint="A live check makes its own.")
            request = Session(document).challenge()
            status, data = _fetch(target, request)
            if status != 200 or len(data) > MAX_BUNDLE:
                raise UndecidedError(
                    f"the replica gave no evidence (HTTP {status})", hint="Is this the address of a Cloister replica?"
                )
            if save is not None:
                save.write_bytes(data)
            verdict = verify_bundle(data, document, now=datetime.now(UTC), nonce=request.nonce).verdict
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
