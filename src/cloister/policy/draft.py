"""Writes a first policy for a replica that someone just started or looked at: trust on first use, said loudly."""

from __future__ import annotations

from collections.abc import Mapping

from cloister.policy.document import SCHEMA, Policy
from cloister.policy.roots import anchors_for
from cloister.wire import toml

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
    image are taken. Raises PolicyDocumentError if they name none (a debug enclave) or for other wrong values.
    """
    image = {register: measurements[register] for register in ("pcr0", "pcr1", "pcr2") if register in measurements}
    anchors_for(simulated_root_pem)
    tee: dict[str, object] = {"accept": ["nitro"]}
    if simulated_root_pem is not None:
        tee |= {"allow_simulated": True, "simulated_root_pem": simulated_root_pem.strip() + "\n"}
    formats = {"nitro": {"measurement": [{"label": label, **image} if label else image]}}
    return _draft(name, tee, formats, {}, model_sha256=model_sha256, config_sha256=config_sha256, scope=scope)


def draft_simulated(
    *,
    name: str,
    form: str,
    rules: Mapping[str, object],
    waivers: Mapping[str, str],
    root_pem: str,
    model_sha256: str,
    config_sha256: str,
) -> str:
    """The same for a SIMULATED replica with evidence of another format, whose `rules` and `waivers` the caller brings.

    `root_pem` is the simulated root of that format. Raises PolicyDocumentError for what makes no policy.
    """
    tee = {"accept": [form], "allow_simulated": True, "simulated_roots": {form: root_pem.strip() + "\n"}}
    return _draft(
        name, tee, {form: rules}, waivers, model_sha256=model_sha256, config_sha256=config_sha256, scope="replica"
    )


def _draft(
    name: str,
    tee: Mapping[str, object],
    formats: Mapping[str, object],
    waivers: Mapping[str, str],
    *,
    model_sha256: str,
    config_sha256: str,
    scope: str,
) -> str:
    document: dict[str, object] = {
        "schema": SCHEMA,
        "name": name,
        "tee": tee,
        **formats,
        "freshness": {
            "max_age_seconds": 300,
            "max_clock_skew_seconds": 60,
            "reverify_after_seconds": 3600,
            "challenge": "required",
        },
        "model": {"sha256": [model_sha256]},
        "config": {"sha256": [config_sha256]},
        "key": {"scope": [scope]},
    }
    if waivers:
        document["waive"] = [{"rule": rule, "reason": reason} for rule, reason in waivers.items()]
    # Read and written again: the one way to write a policy, with its warnings.
    return HEADER + Policy.from_toml("\n".join(toml.write(document)).encode()).to_toml()
