"""What a policy may demand: each rule with what passes, what it refuses, and what of it cannot be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.tee.snp import signer as s

import cloister.tee.snp as folder
from cloister.errors import PolicyDocumentError, RefusedError, UndecidedError
from cloister.tee.claims import Claims
from cloister.tee.snp import rules
from cloister.wire import toml

BY_NAME = {rule.name: rule for rule in rules.RULES}
GUEST = "\n".join(f'{name} = "any"' for name in rules.GUEST_BITS)
PLATFORM = "\n".join(f'{name} = "any"' for name in rules.PLATFORM_BITS)
MINIMUM = "bootloader = 10\ntee = 1\nsnp = 23\nmicrocode = 84"
CHIP = s.CHIP["Genoa"].hex()


def _read(name: str, text: str) -> Any:
    table = toml.parse(text.encode(), limit=10_000)
    value = BY_NAME[name].read(table)
    table.done()
    return value


def _claims(product: str = "Genoa", *, crl: bytes | None = None, **changes: Any) -> Claims:
    vlek = changes.get("vlek", False)
    return s.setting(product, vlek=vlek, crl=crl).verify(s.report(product, **changes))


def _guest(**bits: str) -> str:
    text = f'[guest_policy]\nabi = "0.31"\n{GUEST}'
    for name, want in bits.items():
        text = text.replace(f'{name} = "any"', f'{name} = "{want}"')
    return text


def _platform(**bits: str) -> str:
    text = f"[platform_info]\n{PLATFORM}"
    for name, want in bits.items():
        text = text.replace(f'{name} = "any"', f'{name} = "{want}"')
    return text


def _minimum(product: str, **parts: int) -> str:
    text = f"[minimum_tcb.{product}]\n{MINIMUM}"
    for name, value in parts.items():
        text = re.sub(rf"^{name} = \d+", f"{name} = {value}", text, flags=re.MULTILINE)
    return text + ("\nfmc = 0" if product == "Turin" and "fmc" not in parts else "")


LOW = s.tcb_bytes("Genoa", (0, 9, 1, 23, 84))
HIGH = s.tcb_bytes("Genoa", (0, 255, 255, 255, 255))

#: rule, policy, changes of a report that passes, changes of one that is refused
CASES = [
    ("measurement", f'measurement = ["{"22" * 48}"]', {}, {"measurement": b"\x22" * 47 + b"\x23"}),
    ("measurement", f'measurement = ["{"77" * 48}", "{"22" * 48}"]', {}, {"measurement": b"\x78" * 48}),
    ("products", 'products = ["Genoa", "Turin"]', {"product": "Turin"}, {"product": "Milan"}),
    ("products", 'products = ["Milan"]', {"product": "Milan"}, {}),
    ("minimum_tcb", _minimum("Genoa"), {}, {"launch_tcb": LOW}),
    ("minimum_tcb", _minimum("Genoa"), {"current_tcb": HIGH}, {"committed_tcb": LOW}),
    # As one number this launch TCB would be larger: its microcode is.
    ("minimum_tcb", _minimum("Genoa"), {"launch_tcb": HIGH}, {"launch_tcb": s.tcb_bytes("Genoa", (0, 9, 1, 23, 255))}),
    ("minimum_tcb", _minimum("Genoa"), {}, {"product": "Turin"}),
    ("minimum_tcb", _minimum("Turin"), {"product": "Turin"}, {"product": "Genoa"}),
    ("minimum_tcb", _minimum("Turin") + "\n" + _minimum("Genoa", microcode=85), {"product": "Turin"}, {}),
    ("provisional_firmware", 'provisional_firmware = "forbidden"', {}, {"current_tcb": HIGH}),
    ("provisional_firmware", 'provisional_firmware = "forbidden"', {}, {"current": b"\x29\x37\x01"}),
    ("signing_key", 'signing_key = ["VCEK"]', {}, {"vlek": True}),
    ("signing_key", 'signing_key = ["VLEK"]', {"vlek": True}, {}),
    ("csp_id", 'csp_id = ["a.cloud.org"]', {"vlek": True}, None),
    ("csp_id", 'csp_id = ["b.cloud.org"]', {}, {"vlek": True}),
    ("chip_id", f'chip_id = ["{CHIP}"]', {}, {"chip_id": bytes(64)}),
    ("chip_id", f'chip_id = ["{"00" * 64}"]', None, {"chip_id": bytes(64)}),
    ("chip_id", f'chip_id = ["{"5b" * 63}5c"]', {"vlek": True, "chip_id": b"\x5b" * 63 + b"\x5c"}, {}),
    ("masked_chip_id", 'masked_chip_id = "forbidden"', {}, {"chip_id": bytes(64)}),
    ("masked_chip_id", 'masked_chip_id = "forbidden"', {"vlek": True}, {"vlek": True, "flags": 0b110}),
    ("guest_policy", _guest(), {}, {"policy": 0x3001E}),
    ("guest_policy", _guest(), {"policy": 0x30100}, {"policy": 0x30000}),
    ("platform_info", _platform(), {}, None),
    ("vmpl", "vmpl = 0", {}, {"vmpl": 1}),
    ("vmpl", "vmpl = 1", {"vmpl": 1}, {"vmpl": 0}),
    ("guest_svn", "guest_svn = 4", {"guest_svn": 4}, {"guest_svn": 3}),
    ("host_data", f'host_data = ["{"33" * 32}"]', {}, {"host_data": bytes(32)}),
    ("host_data", f'host_data = ["{"00" * 32}"]', {"host_data": bytes(32)}, {}),
    ("id_key_digest", f'id_key_digest = ["{"44" * 48}"]', {}, {"id_key_digest": b"\x55" * 48}),
    (
        "author_key_digest", f'author_key_digest = ["{"55" * 48}"]', {"flags": 1},
        {"flags": 1, "author_key_digest": b"\x44" * 48},
    ),
    ("author_key_digest", f'author_key_digest = ["{"55" * 48}"]', {"flags": 1}, {"flags": 0}),
    *(("guest_policy", _guest(**{name: want}), {"policy": good}, {"policy": bad})
      for bit, name in ((16, "smt"), (18, "migrate_ma"), (20, "single_socket"), (21, "cxl"), (22, "aes_256_xts"),
                        (23, "rapl_disabled"), (24, "ciphertext_hiding"), (25, "page_swap_disabled"))
      for want, good, bad in (("required", 0x2001F | 1 << bit, 0x2001F), ("forbidden", 0x2001F, 0x2001F | 1 << bit))),
    *(("platform_info", _platform(**{name: want}), {"platform_info": good}, {"platform_info": bad})
      for bit, name in ((0, "smt"), (1, "tsme"), (2, "ecc"), (3, "rapl_disabled"), (4, "ciphertext_hiding"),
                        (5, "alias_check"), (7, "tio"))
      for want, good, bad in (("required", 1 << bit, 0xBF ^ 1 << bit), ("forbidden", 0xBF ^ 1 << bit, 1 << bit))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "good", "bad"), CASES)
def test_rule(name: str, text: str, good: dict | None, bad: dict | None) -> None:
    value = _read(name, text)
    if good is not None:
        assert BY_NAME[name].check(_claims(**good), value)
    if bad is not None:
        with pytest.raises(RefusedError):
            BY_NAME[name].check(_claims(**bad), value)


def test_every_rule_has_a_case() -> None:
    assert {name for name, *_ in CASES} | {"revocation"} == set(BY_NAME)


def test_what_is_allowed_is_said() -> None:
    masked = _claims(chip_id=bytes(64))
    assert BY_NAME["masked_chip_id"].check(masked, "allowed") == "masked"
    assert BY_NAME["provisional_firmware"].check(_claims(current_tcb=HIGH), "allowed") == "provisional"
    assert "forged" in BY_NAME["products"].check(_claims("Milan"), ("Milan",))
    assert "migrate_ma" in BY_NAME["guest_policy"].check(_claims(policy=0x7001F), _read("guest_policy", _guest()))


def test_revocation_is_undecided_without_a_list() -> None:
    rule = BY_NAME["revocation"]
    assert _read("revocation", 'revocation = "required"') == "required"
    assert rule.check(_claims(crl=s.revocations("Genoa")), "required")
    with pytest.raises(UndecidedError):
        rule.check(_claims(), "required")
    with pytest.raises(UndecidedError):
        rule.check(_claims(crl=s.revocations("Milan")), "required")


def test_a_minimum_counts_for_the_reported_tcb_too() -> None:
    lower = s.extensions("Genoa", tcb=(0, 9, 1, 23, 84))
    claims = s.setting(vcek=s.endorsement("Genoa", amd=lower)).verify(s.report(reported_tcb=LOW))
    with pytest.raises(RefusedError, match="reported TCB"):
        BY_NAME["minimum_tcb"].check(claims, _read("minimum_tcb", _minimum("Genoa")))


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_what_is_not_stated_reads_as_none(name: str) -> None:
    assert _read(name, "") is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("measurement", f'measurement = ["{"00" * 48}"]'), ("measurement", 'measurement = ["22"]'),
        ("measurement", "measurement = []"), ("measurement", f'measurement = "{"22" * 48}"'),
        ("measurement", f'measurement = ["{"AA" * 48}"]'), ("products", 'products = ["Rome"]'),
        ("products", 'products = ["genoa"]'), ("products", "products = []"),
        ("minimum_tcb", "[minimum_tcb.Genoa]\nbootloader = 1"), ("minimum_tcb", _minimum("Genoa", snp=256)),
        ("minimum_tcb", _minimum("Genoa") + "\nfmc = 0"), ("minimum_tcb", f"[minimum_tcb.Turin]\n{MINIMUM}"),
        ("minimum_tcb", _minimum("Rome")), ("provisional_firmware", "provisional_firmware = true"),
        ("provisional_firmware", 'provisional_firmware = "maybe"'), ("revocation", 'revocation = "off"'),
        ("signing_key", 'signing_key = ["NONE"]'), ("csp_id", "csp_id = []"), ("chip_id", 'chip_id = ["00"]'),
        ("masked_chip_id", 'masked_chip_id = ""'), ("guest_policy", '[guest_policy]\nabi = "1.55"'),
        ("guest_policy", f"[guest_policy]\n{GUEST}"), ("guest_policy", _guest(smt="yes")),
        ("guest_policy", _guest() + '\ndebug = "any"'), ("guest_policy", _guest().replace("0.31", "1")),
        ("platform_info", '[platform_info]\nsmt = "any"'), ("platform_info", _platform() + '\nx = "any"'),
        ("vmpl", "vmpl = 4"), ("vmpl", "vmpl = false"), ("guest_svn", "guest_svn = -1"),
        ("host_data", 'host_data = ["33"]'), ("id_key_digest", "id_key_digest = 1"),
        ("author_key_digest", 'author_key_digest = ["zz"]'),
    ],
)  # fmt: skip
def test_what_cannot_be_read(name: str, text: str) -> None:
    with pytest.raises(PolicyDocumentError):
        _read(name, text)


def test_code_and_product_cannot_be_waived() -> None:
    assert {rule.name for rule in rules.RULES if not rule.waivable} == {"measurement", "products"}


def test_the_readme_numbers_its_steps_like_the_code() -> None:
    text = (Path(folder.__file__).parent / "README.md").read_text()
    numbered = re.findall(r"^\| (\d+) \| `([a-z_.]+)` ", text, re.MULTILINE)
    expected = [
        *((title.partition(".")[0], check) for check, title in s.FORMAT.checks),
        *((rule.title.partition(".")[0], f"snp.{rule.name}") for rule in rules.RULES),
    ]
    assert numbered == expected
    assert len({check for _, check in numbered}) == len(numbered)
    assert [int(number) for number, _ in numbered] == list(range(1, len(expected) + 1))


def test_the_policy_of_the_documentation_reads() -> None:
    page = (Path(__file__).parents[3] / "docs" / "snp.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    document = toml.parse(text.encode(), limit=10_000)
    table = document.table("snp")
    stated = {rule.name for rule in rules.RULES if rule.read(table) is not None}
    table.done()
    assert set(BY_NAME) - stated == {"csp_id", "chip_id", "host_data", "id_key_digest", "author_key_digest"}
    keys = set(
        re.findall(r"`([a-z_]+)`", "\n".join(line.split("|")[1] for line in page.splitlines() if line[:3] == "| `"))
    )
    assert keys == set(BY_NAME)
