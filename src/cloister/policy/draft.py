"""Writes a first policy for a replica that someone just started or looked at: trust on first use, said loudly."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from cloister.policy.document import Policy, anchors_for
from cloister.tee.nitro.rules import Measurement

HEADER = """\
# Made from a running replica: it accepts what runs there now, whatever that is (trust on first use).
# Compare the measurements with a build that you made or trust before you rely on it.
"""


def draft(
    *,
    name: str,
    measurements: Mapping[str, str],
    model_sha256: str,
    config_sha256: str,
    simulated_root_pem: str | None,
    scope: str = "replica",
    label: str = "",
) -> str:
    """TOML of a policy with no waivers that accepts exactly this replica; it has been read back before it is returned.

    `measurements` are register values in hex (those of a Verdict or of Claims will do); only registers that name the
    image are taken. Raises PolicyDocumentError if they name none (a debug enclave), ValueError for other wrong values.
    """
    image = {register: measurements.get(register) for register in ("pcr0", "pcr1", "pcr2")}
    policy = Policy(
        name=name,
        tees=("nitro",),
        anchors=anchors_for(simulated_root_pem),
        allow_simulated=simulated_root_pem is not None,
        measurements=(Measurement(**image, label=label),),
        max_age=timedelta(seconds=300),
        max_clock_skew=timedelta(seconds=60),
        reverify_after=timedelta(seconds=3600),
        challenge_required=True,
        model_sha256=(model_sha256,),
        config_sha256=(config_sha256,),
        scopes=(scope,),
        waivers={},
        sha256="",
        simulated_root_pem=None if simulated_root_pem is None else simulated_root_pem.strip() + "\n",
    )
    return HEADER + policy.to_toml()
