"""The roots that a policy itself names: of simulated formats, and where a vendor's own root is not built in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from cloister.errors import MalformedError, NotGenuineError, PolicyDocumentError
from cloister.tee import registry
from cloister.tee.format import Format
from cloister.trust.anchors import Anchor
from cloister.trust.certificates import from_pem
from cloister.wire import toml

#: The format whose evidence can be simulated.
SIMULATED = "nitro"
#: Formats whose simulated root stands in `tee.simulated_roots`: their chains differ, so that no root serves two.
SIMULATED_ROOTS = ("tdx", "ita")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+\n-----END CERTIFICATE-----\Z")


def anchors_for(
    simulated_root_pem: str | None, simulated_roots: Mapping[str, str] | None = None
) -> Mapping[str, tuple[Anchor, ...]]:
    """The roots of simulated formats, each with a simulated one (one PEM certificate, nothing else) that is given.

    The vendor's roots always stay: allowing simulated evidence does not turn genuine evidence away. Raises
    PolicyDocumentError.
    """
    given = {} if simulated_root_pem is None else {SIMULATED: ("tee.simulated_root_pem", simulated_root_pem)}
    given |= {form: (f"tee.simulated_roots.{form}", pem) for form, pem in (simulated_roots or {}).items()}
    return {form: (*registry.get(form).anchors, _anchor(form, name, pem)) for form, (name, pem) in given.items()}


def _anchor(form: str, name: str, pem: str) -> Anchor:
    # A second certificate, or text around the first, would be skipped in silence by the parser.
    if not _CERTIFICATE.match(pem.strip()):
        raise PolicyDocumentError(
            f"{name} must hold one PEM certificate and nothing else",
            hint="Paste the root certificate that the simulated replica printed or wrote.",
        )
    try:
        anchor = Anchor.simulated(pem)
    except PolicyDocumentError as error:
        raise PolicyDocumentError(f"{name}: {error.message}", hint=error.hint) from None
    built_in = registry.get(form).anchors
    if any(anchor.sha256 == root.sha256 or anchor.spki == root.spki for root in built_in):
        raise PolicyDocumentError(f"{name} is a hardware vendor's root", hint="Vendors' roots are built in; remove it.")
    return anchor


def read(tee: toml.Table, formats: Iterable[Format], *, allow_simulated: bool) -> tuple[str | None, dict[str, str]]:
    """The root of simulated Nitro documents, and those of other formats by name; raises PolicyDocumentError.

    Roots are given exactly where simulated evidence is allowed.
    """
    pem, table = tee.text("simulated_root_pem"), tee.table("simulated_roots")
    roots = {form: text.strip() + "\n" for form in SIMULATED_ROOTS if (text := table.text(form)) is not None}
    table.done()
    if allow_simulated and pem is None and not roots:
        raise PolicyDocumentError(
            "tee.allow_simulated needs tee.simulated_root_pem or tee.simulated_roots",
            hint="Paste the simulated replica's root certificate.",
        )
    if (pem is not None or roots) and not allow_simulated:
        raise PolicyDocumentError(
            f"{'tee.simulated_root_pem' if pem is not None else 'tee.simulated_roots'} is given but "
            "tee.allow_simulated is not true",
            hint="Remove the root, or accept that a simulated TEE proves nothing.",
        )
    for unused in set(roots) - {form.name for form in formats}:
        raise PolicyDocumentError(
            f"{table.name(unused)} is the root of a format that the policy does not accept", hint="Remove it."
        )
    return (None if pem is None else pem.strip() + "\n"), roots


def write(root_pem: str | None, roots: Mapping[str, str]) -> list[str]:
    """The lines of `[tee]` that allow simulated evidence, of Nitro under one root and of other formats under theirs."""
    named = {"simulated_root_pem": root_pem} if root_pem is not None else {}
    named |= {f"simulated_roots.{form}": pem for form, pem in roots.items()}
    return [
        "# SIMULATED: evidence under this root proves nothing about the machine. For laptops and tests only.",
        "allow_simulated = true",
        *(f'{name} = """\n{pem}"""' for name, pem in named.items()),
    ]


def named(formats: Iterable[Format], sections: Mapping[str, toml.Table]) -> dict[str, tuple[Anchor, ...]]:
    """Roots that the formats' tables name, where none is built in; raises PolicyDocumentError."""
    found: dict[str, tuple[Anchor, ...]] = {}
    for form in formats:
        for root in form.roots:
            name, pem = sections[form.name].name(root.key), sections[form.name].text(root.key)
            if pem is None:
                continue
            try:
                (der,) = from_pem(pem.encode(), "root", smallest=1, largest=1)
                found[root.anchors] = (replace(root.read(der), origin="named by the policy"),)
            except (MalformedError, NotGenuineError) as error:
                raise PolicyDocumentError(
                    f"{name}: {error.message}", hint="Paste the vendor's root certificate, and nothing else."
                ) from None
    return found
