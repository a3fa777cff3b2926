"""How one need is met: what to ask, and how an answer shows that it is one; with the checks that vendors share."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cloister.errors import MalformedError, NotGenuineError
from cloister.trust.certificates import common_name, from_pem, load_certificate, load_crl
from cloister.trust.fetch.http import Http
from cloister.trust.need import Life, Need

MAX_PEM = 32 * 1024


@dataclass(frozen=True, kw_only=True)
class Source:
    """`key` is the whole question, `load` asks it. `life` gets an answer, new or from disk, and when it came.

    It raises MalformedError or NotGenuineError for what is no answer to it. After `fresh` the question is asked
    again, though the old answer stays good while its life lasts. Of the sources that name the same `serial` one asks at
    a time.
    """

    key: str
    load: Callable[[Http], bytes]
    life: Callable[[bytes, datetime], Life]
    fresh: timedelta
    serial: str | None = None


def parameter(need: Need, name: str, pattern: str) -> str:
    """A parameter that goes into an address: all of it must match. Raises MalformedError."""
    value = need.parameters.get(name, "")
    if not re.fullmatch(pattern, value, re.ASCII):
        raise MalformedError(f"{need.kind}: {name} is not of the form that the service asks for")
    return value


def certificates(pem: bytes, count: int, what: str) -> tuple[bytes, ...]:
    """Exactly `count` certificates (DER) of a PEM text, each one parsed; raises MalformedError."""
    ders = from_pem(pem, what, smallest=count, largest=count)
    for der in ders:
        load_certificate(der, what)
    return ders


def crl_life(der: bytes, issuer: str, what: str) -> Life:
    """The life of one DER list whose issuer has that common name; raises MalformedError or NotGenuineError."""
    found = load_crl(der, what)
    if found.next_update_utc is None:
        raise MalformedError(f"{what}: a list without an end")
    if common_name(found.issuer) != issuer:
        raise NotGenuineError(f"{what}: the list of another issuer")
    return Life(found.last_update_utc, found.next_update_utc)
