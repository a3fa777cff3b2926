"""What a TEE folder brings for each format of evidence: checks, a verifier, the rules that a policy can state.

`registry.py` finds formats by name. A folder's `__init__.py` holds only the names; everything here is loaded when a
policy or a command names the format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cloister.tee.claims import Claims
from cloister.tee.context import Context
from cloister.tee.evidence import Role
from cloister.trust.anchors import Anchor
from cloister.trust.need import Need
from cloister.wire.toml import Table


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One thing that a policy demands of genuine evidence of one format.

    `name` is its key in the format's table: the rule `vmpl` of `snp` is `snp.vmpl`. `read` takes the table and gives
    the demanded value, None where it is not stated; it raises PolicyDocumentError. `check` gets the claims and that
    value, returns what it saw, raises RefusedError (NotGenuineError for a forged part).
    Values are opaque to everybody but the pair of functions, hence Any.
    """

    name: str
    title: str
    #: TOML that states it, shown where a policy leaves it out.
    example: str
    read: Callable[[Table], Any]
    check: Callable[[Claims, Any], str]
    #: False for what names the code: a policy without it would accept anything that is genuine.
    waivable: bool = True


@dataclass(frozen=True, kw_only=True)
class NamedRoot:
    """A vendor's root that is not built in: a policy may name it, by its certificate in PEM, in the format's table.

    `key` is its place there, `anchors` the name under which a Context has it, where nothing is built in. `read` gets
    the certificate (DER) and raises MalformedError, or NotGenuineError for one that cannot be it.
    """

    key: str
    title: str
    anchors: str
    read: Callable[[bytes], Anchor]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format of evidence.

    `verify` answers only whether it is genuine: MalformedError, NotGenuineError, or UndecidedError where collateral is
    missing. `bind` compares what the evidence carries with B (32 bytes) and the challenge root F (32 bytes or None);
    raises NotGenuineError. `inner` names formats that this one may envelop.
    """

    name: str
    title: str
    media_type: str
    role: Role
    checks: tuple[tuple[str, str], ...]
    verify: Callable[[bytes, Context], Claims]
    rules: tuple[Rule, ...]
    bind: Callable[[Claims, bytes, bytes | None], None]
    #: Decodes without verifying, for people to look at; raises MalformedError.
    parse: Callable[[bytes], object]
    #: What evidence, which nobody has verified, would need beside it; raises MalformedError.
    needs: Callable[[bytes], tuple[Need, ...]]
    anchors: tuple[Anchor, ...] = ()
    roots: tuple[NamedRoot, ...] = ()
    inner: tuple[str, ...] = ()
    #: Kinds of collateral (trust/collateral.py) that `verify` looks at.
    collateral: tuple[str, ...] = ()
