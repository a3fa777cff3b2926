"""Writes a first policy for a replica that someone just started or looked at: trust on first use, said loudly."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cloister.policy.document import SCHEMA, Policy


def draft(
    *,
    name: str,
    measurements: Mapping[str, str],
    model_sha256: str,
    config_sha256: str,
    simulated_root_pem: str | None,
    scope: str = "replica",
) -> str:
    """TOML of a policy with no waivers that accepts exactly this replica; it has been read back before it is returned.

    `measurements` are register values in hex; only registers that name the image are taken.
    """
    lines = [
        "# Made from a running replica: it accepts what runs there now, whatever that is (trust on first use).",
        "# Compare the measurements with a build that you made or trust before you rely on it.",
        f"schema = {json.dumps(SCHEMA)}",
        f"name = {json.dumps(name)}",
        "",
        "[tee]",
        'accept = ["nitro"]',
    ]
    if simulated_root_pem is not None:
        lines += [
            "# SIMULATED: evidence under this root proves nothing about the machine. For laptops and tests only.",
            "allow_simulated = true",
            f'simulated_root_pem = """\n{simulated_root_pem.strip()}\n"""',
        ]
    lines += ["", "[[nitro.measurement]]"]
    lines += [f'{name} = "{measurements[name]}"' for name in ("pcr0", "pcr1", "pcr2") if name in measurements]
    lines += [
        "",
        "[freshness]",
        "max_age_seconds = 300",
        "max_clock_skew_seconds = 60",
        "reverify_after_seconds = 3600",
        'challenge = "required"',
        "",
        "[model]",
        f'sha256 = ["{model_sha256}"]',
        "",
        "[config]",
        f'sha256 = ["{config_sha256}"]',
        "",
        "[key]",
        f'scope = ["{scope}"]',
        "",
    ]
    text = "\n".join(lines)
    Policy.from_toml(text.encode())
    return text
