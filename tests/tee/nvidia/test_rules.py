"""Every rule of reports: one case that passes, one that is refused; and what a policy cannot leave out."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from tests.tee.nvidia import real, signer
from tests.tee.nvidia.signer import ANCHORS, DAY, IDENTITY, NOW, PROVISIONER, RIM_CA, RIM_SIGNER, Chip, response

from cloister.errors import CloisterError, NotGenuineError, PolicyDocumentError, RefusedError, UndecidedError
from cloister.tee import nvidia, registry
from cloister.tee.claims import Claims
from cloister.tee.nvidia.evidence import Arch, Kind
from cloister.wire import toml
from cloister.wire.toml import Table

CHIP = Chip.make()
RIMS = (signer.driver_rim(), signer.vbios_rim())
POLICY: dict[str, object] = {
    "arch": ["hopper"],
    "driver": [signer.DRIVER],
    "vbios": [signer.VBIOS],
    "measurements": "rim",
    "rim_grace_days": 0,
    "ocsp_max_age_seconds": 86400,
    "certificate_hold": "refuse",
    "gpus": 1,
    "switches": 0,
    "mode": ["spt"],
    "fwid": "required",
    "ueid": [CHIP.ueid],
}


def _claims(*devices: real.Device, rims: object = RIMS, ocsps: object = None, now: object = NOW) -> Claims:
    collateral = signer.collateral(rims, signer.responses() if ocsps is None else ocsps)
    return real.gpu(list(devices) or [CHIP.report()], now=now, anchors=ANCHORS, collateral=collateral)


def _refused(
    claims: Claims, rule: str, *, match: str, error: type[CloisterError] = RefusedError, **policy: object
) -> None:
    with pytest.raises(error, match=match):
        real.apply("nvidia-gpu", claims, {**POLICY, **policy}, rule)


def test_a_full_policy_accepts() -> None:
    assert set(real.apply("nvidia-gpu", _claims(), POLICY)) == set(POLICY)


def test_a_rule_that_is_not_stated_reads_as_nothing() -> None:
    for rule in registry.get("nvidia-gpu").rules:
        assert rule.read(Table({}, "nvidia-gpu")) is None


def test_what_cannot_be_waived() -> None:
    rules = registry.get("nvidia-gpu").rules
    assert {rule.name for rule in rules if not rule.waivable} == {"measurements", "certificate_hold"}
    assert [rule.name for rule in registry.get("nvidia-nras").rules if not rule.waivable] == ["result"]


@pytest.mark.parametrize("format_name", ["nvidia-gpu", "nvidia-nras"])
def test_the_examples_are_policies(format_name: str) -> None:
    for rule in registry.get(format_name).rules:
        table = toml.parse(rule.example.encode(), limit=1000)
        assert rule.read(table) is not None
        table.done()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("arch", ["ampere"]), ("arch", "hopper"), ("arch", []), ("arch", ["ls10"]), ("driver", []), ("driver", "590.12"),
        ("vbios", [1]), ("measurements", "any"), ("measurements", True), ("rim_grace_days", -1),
        ("rim_grace_days", 3651), ("ocsp_max_age_seconds", 0), ("ocsp_max_age_seconds", 31 * 86400),
        ("certificate_hold", "maybe"), ("gpus", 0), ("gpus", 33), ("gpus", True), ("switches", -1), ("mode", ["cc"]),
        ("mode", []), ("fwid", "optional"), ("ueid", []), ("ueid", ["0x1f"]), ("ueid", ["007"]),
    ],
)  # fmt: skip
def test_what_cannot_be_read(name: str, value: object) -> None:
    (rule,) = (rule for rule in registry.get("nvidia-gpu").rules if rule.name == name)
    with pytest.raises(PolicyDocumentError):
        rule.read(Table({name: value}, "nvidia-gpu"))


def test_arch() -> None:
    _refused(_claims(), "arch", match="architecture", arch=["blackwell"])
    switch = Chip.make("LS_10 A01 FSP FMC LF", kind=Kind.SWITCH, arch=Arch.LS10)
    opaque = {**dict.fromkeys(signer.OPAQUE), 6: b"96.10.55.00.01"}
    alone = _claims(switch.report(count=31, opaque=opaque))
    _refused(alone, "arch", match="architecture")
    _refused(alone, "gpus", match="0 GPUs, the policy expects 1")
    extension = ((signer.dice(arc="2.23.133.5.4.1.1"), False),)
    black = Chip.make("GB100 A01 GSP FMC LF", arch=Arch.BLACKWELL, extensions=extension)
    mixed = _claims(CHIP.report(), black.report())
    _refused(mixed, "arch", match="different chips", arch=["hopper", "blackwell"])


def test_driver_and_vbios() -> None:
    _refused(_claims(), "driver", match="driver version", driver=["590.1", "590.123"])
    _refused(_claims(), "vbios", match="VBIOS version", vbios=["96.00.A5.00.02"])
    older = Chip.make().report(opaque={3: b"535.86.09\x00", 6: bytes.fromhex("005e009601000000")})
    two = _claims(CHIP.report(), older)
    _refused(two, "driver", match="driver version")
    _refused(two, "vbios", match="VBIOS version")
    policy = {"driver": [signer.DRIVER, "535.86.09"], "vbios": [signer.VBIOS, "96.00.5E.00.01"]}
    real.apply("nvidia-gpu", two, {**POLICY, **policy}, *policy)


def test_measurements() -> None:
    for rims, missing in (((), "590.12 and 96.00.A5.00.01"), (RIMS[:1], "96.00.A5.00.01"), (RIMS[1:], "590.12")):
        _refused(_claims(rims=rims), "measurements", error=UndecidedError, match=f"manifest .RIM. of {missing} is")
    wrong = _claims(CHIP.report(changed={25: bytes(48)}))
    _refused(wrong, "measurements", match="1 of 32 measurements .* index 25")
    # One device that was not compared is not hidden by another that was.
    other = Chip.make().report(opaque={3: b"535.86.09\x00"})
    _refused(_claims(CHIP.report(), other), "measurements", error=UndecidedError, match="535.86.09")


def test_rim_grace_days() -> None:
    ended = signer.issue("ended", RIM_CA, ca=False, not_after=NOW - 3 * DAY)
    claims = _claims(rims=(signer.driver_rim(signer=ended), RIMS[1]))
    _refused(claims, "rim_grace_days", match="ended 3 days ago, 0 allowed")
    _refused(claims, "rim_grace_days", match="ended 3 days ago, 2 allowed", rim_grace_days=2)
    real.apply("nvidia-gpu", claims, {**POLICY, "rim_grace_days": 3}, "rim_grace_days")


def _but(name: str, **options: object) -> list[bytes]:
    """All responses, with other options for one; `status=None` leaves it out."""
    subject, issuer = {
        "identity": (IDENTITY, signer.DEVICE_ROOT), "provisioner": (PROVISIONER, IDENTITY),
        "brom": (signer.BROM, PROVISIONER), "rim_ca": (RIM_CA, signer.RIM_ROOT), "rim_signer": (RIM_SIGNER, RIM_CA),
    }[name]  # fmt: skip
    if options.get("status", "") is None:
        removed = signer.responses(**{name: b""})
        return [data for data in removed if data]
    return signer.responses(**{name: response(subject, issuer, **options)})


EACH = ("identity", "provisioner", "brom", "rim_ca", "rim_signer")


@pytest.mark.parametrize("name", EACH)
def test_every_certificate_must_be_answered_for(name: str) -> None:
    hour = timedelta(hours=1)
    for options, error, match in (
        ({"status": None}, UndecidedError, "no OCSP response"),
        ({"this_update": NOW - 25 * hour}, UndecidedError, "too old"),
        ({"this_update": NOW - 2 * hour, "next_update": NOW - hour}, UndecidedError, "too old"),
        ({"status": "unknown"}, RefusedError, "does not know"),
    ):
        _refused(_claims(ocsps=_but(name, **options)), "ocsp_max_age_seconds", error=error, match=match)
    real.apply("nvidia-gpu", _claims(ocsps=_but(name, next_update=None)), POLICY, "ocsp_max_age_seconds")


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("status", ["revoked", "compromise"])
def test_a_revoked_certificate_is_not_genuine_whatever_the_policy(name: str, status: str) -> None:
    for options in ({}, {"this_update": NOW - 365 * DAY, "next_update": NOW - 364 * DAY}):
        with pytest.raises(NotGenuineError, match="was revoked"):
            _claims(ocsps=_but(name, status=status, **options))
    # A newer good answer does not undo it.
    with pytest.raises(NotGenuineError, match="was revoked"):
        _claims(ocsps=[*signer.responses(), *_but(name, status=status, this_update=NOW - 2 * DAY)])


@pytest.mark.parametrize("name", EACH)
def test_certificate_hold(name: str) -> None:
    held = _claims(ocsps=_but(name, status="hold"))
    _refused(held, "certificate_hold", match="1 certificates are on hold")
    assert real.apply("nvidia-gpu", held, {**POLICY, "certificate_hold": "allow"})["certificate_hold"].startswith("1")
    # The newest answer counts: a hold may end.
    lifted = _claims(ocsps=[*_but(name, status="hold", this_update=NOW - 2 * DAY), *signer.responses()])
    real.apply("nvidia-gpu", lifted, POLICY, "certificate_hold")
    _refused(
        _claims(ocsps=[*_but(name, this_update=NOW - 2 * DAY), *_but(name, status="hold")]),
        "certificate_hold",
        match="hold",
    )


def test_a_forged_response_is_an_error_and_a_foreign_one_is_nobodys() -> None:
    forged = response(PROVISIONER, IDENTITY, by=signer.responder(signer.BROM))
    with pytest.raises(NotGenuineError, match="responder"):
        _claims(ocsps=[*signer.responses(), forged])
    foreign = response(signer.issue("x", signer.issue("y")), signer.issue("y"))
    real.apply("nvidia-gpu", _claims(ocsps=[*signer.responses(), foreign]), POLICY)


def test_two_signers_of_one_name_are_both_asked_for() -> None:
    twin = signer.issue("test RIM signer", RIM_CA, ca=False)
    claims = _claims(rims=(RIMS[0], signer.vbios_rim(signer=twin)))
    _refused(claims, "ocsp_max_age_seconds", error=UndecidedError, match="no OCSP response about CN=test RIM signer")


def test_counts() -> None:
    _refused(_claims(), "gpus", match="1 GPUs, the policy expects 2", gpus=2)
    _refused(_claims(CHIP.report(), Chip.make().report()), "gpus", match="2 GPUs, the policy expects 1")
    _refused(_claims(), "switches", match="0 NVSwitches, the policy expects 4", switches=4)


def test_mode() -> None:
    _refused(_claims(), "mode", match="mode", mode=["mpt"])
    unknown = _claims(CHIP.report(opaque={36: None, 21: None}))
    _refused(unknown, "mode", match="mode", mode=["spt", "mpt", "ppcie"])
    mpt = Chip.make().report(opaque={36: b"\x01\x00", 21: None})
    _refused(_claims(CHIP.report(), mpt), "mode", match="different modes", mode=["spt", "mpt"])


def _ppcie(
    gpus: int = 2, links: tuple[bytes, ...] = (b"switch-0",), seen: int | None = None, **options: object
) -> Claims:
    """GPUs in protected PCIe mode that see these switches; one switch, `switch-0`, that sees `seen` GPUs."""
    opaque = {21: b"\xaa", 36: b"\x02\x00", 22: b"".join(links) + bytes(8)}
    devices = [Chip.make().report(opaque=opaque) for _ in range(gpus)]
    identities = b"".join(b"gpu-id-%d" % at for at in range(gpus if seen is None else seen))
    switch = {
        **dict.fromkeys(signer.OPAQUE), 6: b"96.10.55.00.01", 22: b"switch-0"[::-1],
        26: identities.ljust(64, b"\x00") + b"\xff" * 64,
    }  # fmt: skip
    chip = Chip.make("LS_10 A01 FSP FMC LF", kind=Kind.SWITCH, arch=Arch.LS10)
    return _claims(*devices, *([] if options.get("alone") else [chip.report(count=31, opaque=switch)]))


def test_topology() -> None:
    policy = {"mode": ["ppcie"]}
    assert real.apply("nvidia-gpu", _ppcie(), {**POLICY, **policy}, "mode") == {"mode": "ppcie"}
    _refused(_ppcie(alone=True), "mode", match="linked to switches", **policy)
    _refused(_ppcie(links=(b"switch-1",)), "mode", match="linked to switches", **policy)
    _refused(_ppcie(links=(b"switch-0", b"switch-1")), "mode", match="linked to switches", **policy)
    _refused(_ppcie(links=()), "mode", match="linked to switches", **policy)
    _refused(_ppcie(links=(b"switch-0"[::-1],)), "mode", match="linked to switches", **policy)
    for seen in (0, 1, 3):
        _refused(_ppcie(seen=seen), "mode", match="other GPUs", **policy)


def test_fwid() -> None:
    _refused(_claims(CHIP.report(opaque={20: None})), "fwid", match="1 GPUs report no firmware identity")


def test_ueid() -> None:
    _refused(_claims(), "ueid", match="device", ueid=["1"])
    other = Chip.make()
    _refused(_claims(CHIP.report(), other.report()), "ueid", match="device")
    policy = {**POLICY, "ueid": [CHIP.ueid, other.ueid]}
    real.apply("nvidia-gpu", _claims(CHIP.report(), other.report()), policy, "ueid")


def test_the_readme_numbers_its_steps_like_the_code() -> None:
    text = (Path(nvidia.__file__).parent / "README.md").read_text()
    numbered = re.findall(r"^\| (\d+) \| `([a-z_.-]+)` ", text, re.MULTILINE)
    expected = [
        pair
        for name in ("nvidia-gpu", "nvidia-nras")
        for pair in (
            *((title.partition(".")[0], check) for check, title in registry.get(name).checks),
            *((rule.title.partition(".")[0], f"{name}.{rule.name}") for rule in registry.get(name).rules),
        )
    ]
    assert numbered == expected
    assert [int(number) for number, _ in numbered] == [*range(1, 20), *range(1, 13)]


def test_the_policies_of_the_documentation_are_complete() -> None:
    page = (Path(__file__).parents[3] / "docs" / "nvidia.md").read_text()
    texts = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert len(texts) == 2
    for name, text in zip(("nvidia-gpu", "nvidia-nras"), texts, strict=True):
        table = toml.parse(text.encode(), limit=10_000).table(name)
        assert all(rule.read(table) is not None for rule in registry.get(name).rules)
        table.done()
        assert {rule.name for rule in registry.get(name).rules} <= set(re.findall(r"`([a-z_]+)`", page)) | {"result"}
