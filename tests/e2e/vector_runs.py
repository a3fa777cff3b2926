"""Every entry of the collected vectors as a run of `cloister verify`: file, policy, collateral, time, expected verdict.

One function for each platform makes the runs of an entry; `MEANINGS` says what each expected text of the collection means
here. Both are complete, or `cases` fails.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.tee.azure import real as azure
from tests.tee.nvidia import real as nvidia
from typer.testing import CliRunner

from cloister.cli.main import app
from cloister.policy.document import SCHEMA
from cloister.tee import FORMATS, registry
from cloister.tee.evidence import Role
from cloister.tee.nvidia.evidence import pack
from cloister.tee.nvidia.roots import NRAS_ISSUER
from cloister.trust.collateral import Item
from cloister.wire import toml

Entry = Mapping[str, Any]
Tables = dict[str, dict[str, object]]
REASON = "A collected file, looked at for its own sake."
#: Formats of collected evidence that no version verifies: `cloister verify` says so and exits with 2.
NEVER = frozenset({"arm-cca"})
#: Formats whose folder is not in this version yet. A test keeps it true: what is a format now does not belong here.
NOT_YET: frozenset[str] = frozenset()
#: For entries that name no time: an hour at which what they need is valid, where something is.
SOME_DAY = datetime(2026, 6, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: `way` names it where an entry has several; `tables` are stated by format, what else can be is waived."""

    tee: str
    evidence: bytes
    at: datetime
    way: str = ""
    items: tuple[Item, ...] = ()
    tables: Tables = field(default_factory=dict)
    inside: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run of an entry, with the exit code and the failed check that its expected text means."""

    number: int
    file: str
    expected: str
    run: Run
    exit_code: int
    check: str

    @property
    def id(self) -> str:
        """For people: number, file, way."""
        return f"{self.number:02}-{self.file}{f'-{self.run.way}' if self.run.way else ''}".replace(" ", "_")


# What the collection expects -----------------------------------------------------------------------------------------

ACCEPTED = (0, "")
#: Expected text: way of a run -> exit code and failed check; `*` is the run's own format.
MEANINGS: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "accept": {"": ACCEPTED},
    # Tokens: their issuer's word, which a policy accepts by name.
    "accept (for issuer sharedeus2.eus2.attest.azure.net)": {
        "that issuer": ACCEPTED, "another issuer": (5, "policy.*.issuer"),
    },
    "accept (x-nvidia-overall-att-result True)": {"": ACCEPTED},
    # The report is genuine. Whether it measured what NVIDIA signed is not known without both manifests, and no policy
    # can do without that: so undecided, after all seven checks of genuineness have passed.
    "accept (report signature + chain)": {"without manifests": (6, "policy.*.measurements"), "with manifests": ACCEPTED},
    # Genuine, and a policy decides.
    "accept only if provisional firmware is permitted (current_tcb != committed_tcb)": {
        "allowed": ACCEPTED, "forbidden": (5, "policy.*.provisional_firmware"),
    },
    "policy decision on TCB status ConfigurationAndSWHardeningNeeded": {
        "listed": ACCEPTED, "not listed": (5, "policy.*.tcb_status"),
    },
    "policy decision on TCB status OutOfDate": {"listed": ACCEPTED, "not listed": (5, "policy.*.tcb_status")},
    "signature OK; attester_tcb_status OutOfDate -> policy decision": {
        "listed": ACCEPTED, "not listed": (5, "policy.*.tcb_status"),
    },
    # Genuine, and no policy can accept it.
    "reject: debug mode (PCR0-2 all zero)": {"": (5, "policy.debug")},
    "reject: guest policy DEBUG bit": {"": (5, "policy.debug")},
    "reject: dbgstat=enabled (debug image); signature OK": {"": (5, "policy.debug")},
    "reject: dbgstat=enabled, sgx_is_debuggable, attester_tcb_status OutOfDateConfigurationNeeded; signature OK": {
        "": (5, "policy.debug"),
    },
    "reject: ERR: Verification failed: Debug mode is enabled": {"": (5, "*.tcb")},
    "reject: ERR: Verification failed: SEPT_VE_DISABLE is not enabled": {"": (5, "*.tcb")},
    "reject: ERR: Verification failed: Invalid MR service TD": {"": (5, "*.tcb")},
    "chain+binding OK; TCB via dcap-qvl: REJECTED by dcap-qvl (SEPT_VE_DISABLE not set)": {"": (5, "tdx.tcb")},
    # Genuine as far as it goes, but without a TPM quote nothing says what the guest booted.
    "chain+binding OK; TCB via dcap-qvl: UpToDate with tdx/built_90c06f000000_2026-02.json at 2026-03-01": {
        "": (5, "policy.*.measurement"),
    },
    # Not genuine.
    "reject: SIG, ek<-ica": {"": (4, "*.chain")},
    "reject: signature BAD, chain True": {"": (4, "*.signature"), "a byte too many": (3, "*.envelope")},
    "reject: ERR: Verification failed: No matching TCB level found": {
        "": (4, "*.tcb"), "trailing bytes": (3, "*.quote"), "cut": (4, "*.tcb"),
    },
    "reject: staging issuer and staging key; signature OK": {"": (4, "*.issuer")},
    # No evidence of any format.
    "reject: 764-byte MOCK quote (MRTD aa.., sig_len 128, no certification data); parse error": {"": (3, "*.quote")},
    "reject: not an EIF (no .eif magic); placeholder committed as a test fixture": {"": (3, "*.cose")},
    "reject: alg none JWTs (local verifier output, not a token)": {
        "whole": (3, "*.bundle"), "tokens": (4, "*.signature"),
    },
    # A chain of certificates without the evidence that it belongs to.
    "accept chain": {"": (3, "*.message")},
    # Its vendor calls it a test vector of a software key; nothing here reads such tokens.
    "format vector only: software test key, not hardware": {"": (2, "")},
    # What would decide is not at hand: undecided, which is never success.
    "reject: ERR: Verification failed: Fmspc mismatch": {"": (6, "*.collateral")},
    "signature chain only (no matching collateral available)": {"": (6, "*.collateral")},
    "claims parse (production image, eat_nonce is a STRING here, not a list)": {"": (6, "*.key")},
    "claims parse of the pre-GA (amber_*) shape; reject in production": {"": (6, "*.key")},
    "quote OK; AK has no certificate in this file, so no chain": {"": (6, "*.key")},
}  # fmt: skip
#: Ways that only some entries of a text take.
SOME = frozenset({"with manifests", "a byte too many", "trailing bytes", "cut"})


# From entries to runs -------------------------------------------------------------------------------------------------


def _at(entry: Entry) -> datetime:
    when = entry.get("verify_at")
    return datetime.fromisoformat(str(when)) if when else SOME_DAY


def _named(table: Mapping[str, str], names: tuple[str, ...]) -> dict[str, object]:
    return {"measurement": [{name: table[name] for name in names}]}


def _text(vectors: Path, entry: Entry) -> bytes:
    return (vectors / str(entry["file"])).read_bytes().strip()


def _json(vectors: Path, name: object) -> dict:
    return json.loads((vectors / str(name)).read_bytes())


def _nitro(vectors: Path, entry: Entry) -> Iterator[Run]:
    pcrs = {int(at): value for at, value in entry.get("pcrs", {}).items()}
    # Zeros cannot be stated; a debug document is refused before its registers are looked at.
    pcr0 = pcrs.get(0, "")
    stated = {"measurement": [{"pcr0": pcr0 if pcr0.strip("0") else "01" * 48}]}
    yield Run(
        tee="nitro", evidence=(vectors / entry["file"]).read_bytes(), at=_at(entry), tables={"nitro": stated},
    )  # fmt: skip


def _snp(vectors: Path, entry: Entry) -> Iterator[Run]:
    stated = {
        "measurement": [entry["measurement"]], "products": [entry["product"]], "vmpl": entry["vmpl"],
        "signing_key": [entry["signer"]], "chip_id": [entry["chip_id"]], "host_data": [entry["host_data"]],
        "guest_svn": entry["guest_svn"], "masked_chip_id": "forbidden", "provisional_firmware": "forbidden",
    }  # fmt: skip
    data = (vectors / entry["file"]).read_bytes()
    run = {
        "tee": "snp",
        "evidence": bytes.fromhex(data.decode()) if entry["file"].endswith(".hex") else data,
        "at": datetime.fromisoformat(entry["ek_not_before"]) + timedelta(days=1),
        "items": (Item("amd-vcek", _der(vectors / entry["ek"])),),
    }
    if "provisional" in entry["expected"]:
        yield Run(**run, way="allowed", tables={"snp": stated | {"provisional_firmware": "allowed"}})
        yield Run(**run, way="forbidden", tables={"snp": stated})
    else:
        yield Run(**run, tables={"snp": stated})


def _der(path: Path) -> bytes:
    data = path.read_bytes()
    return base64.b64decode(data.split(b"-----")[2]) if data.startswith(b"-----") else data


def _intel(vectors: Path, entry: Entry) -> Iterator[Run]:
    tee = entry["platform"].removeprefix("intel-")
    if tee == "sgx":
        stated = _named(entry, ("mrenclave",))
    elif "mrtd" in entry:
        stated = _named(entry, ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"))
    else:
        stated = {"measurement": [{"mrtd": "01" * 48, "rtmr1": "00" * 48, "rtmr2": "00" * 48}]}
    if tee == "tdx":
        stated |= {"sept_ve_disable": True}
    data = (vectors / entry["file"]).read_bytes()
    run = {
        "tee": tee,
        "evidence": bytes.fromhex(data.decode().strip().removeprefix("0x")) if entry["file"].endswith(".hex") else data,
        "at": _at(entry),
        "items": (Item("intel-collateral", (vectors / entry["collateral"]).read_bytes()),)
        if entry.get("collateral")
        else (),
    }
    if entry["expected"].startswith("policy decision"):
        status = entry["expected"].rpartition(" ")[2]
        yield Run(**run, way="listed", tables={tee: stated | {"tcb_status": ["UpToDate", status]}})
        yield Run(**run, way="not listed", tables={tee: stated | {"tcb_status": ["UpToDate"]}})
        return
    tables = {tee: stated | {"tcb_status": ["UpToDate"]}}
    if entry.get("trailing_nonzero"):
        yield Run(**run, way="trailing bytes", tables=tables)
        run["evidence"] = data[: -entry["trailing_bytes"]]
        yield Run(**run, way="cut", tables=tables)
    else:
        yield Run(**run, tables=tables)


#: Manifests that exist among the vectors, and a time at which their signers are valid, by driver (or for a switch).
MANIFESTS = {
    "550.90.07": (nvidia.RIMS_H100, nvidia.NOW),
    "switch": ((nvidia.RIM_SWITCH,), datetime(2026, 6, 1, tzinfo=UTC)),
}


def _nvidia(vectors: Path, entry: Entry) -> Iterator[Run]:
    kind, arch, report, certificates = nvidia.device(vectors, entry)
    stated: dict[str, object] = {"measurements": "rim", "certificate_hold": "refuse"}
    if entry["platform"] == "nvidia-gpu":
        stated |= {"arch": [arch.value], "driver": [entry["driver"]], "vbios": [entry["vbios"]], "gpus": 1}
        stated |= {"switches": 0, "ueid": [str(int(entry["leaf_serial"], 16))]}
    else:
        # The collection has a switch's VBIOS as its text's bytes in hex, cut short: nothing to state.
        stated |= {"switches": 1, "ueid": [str(int(entry["leaf_serial"], 16))]}
    run = {
        "tee": "nvidia-gpu", "evidence": pack([(kind, arch, report, certificates)]), "tables": {"nvidia-gpu": stated},
    }  # fmt: skip
    if entry["expected"].startswith("reject"):
        yield Run(**run, way="a byte too many" if "extra 00 byte" in entry.get("note", "") else "", at=nvidia.NOW)
        return
    names, at = MANIFESTS.get("switch" if entry["platform"] == "nvidia-switch" else entry["driver"], ((), nvidia.NOW))
    yield Run(**run, way="without manifests", at=at)
    if names:
        yield Run(**run, way="with manifests", at=at, items=nvidia.rims(vectors, *names).items)


def _nras(vectors: Path, entry: Entry) -> Iterator[Run]:
    keys = _json(vectors, "nvidia/nras_recovered_jwks.json")["keys"]
    run = {
        "tee": "nvidia-nras",
        "at": _at(entry),
        "items": (Item("jwks", json.dumps({"issuer": NRAS_ISSUER, "keys": keys}).encode()),),
        "tables": {"nvidia-nras": {"result": "success", "switches": 0, "gpus": entry.get("submods", 1)}},
    }
    data = (vectors / entry["file"]).read_bytes()
    if entry["platform"] == "nvidia-nras":
        yield Run(**run, evidence=data)
    else:
        yield Run(**run, way="whole", evidence=data)
        yield Run(**run, way="tokens", evidence=json.dumps(json.loads(data)["detached_eat"]).encode())


def _ita(vectors: Path, entry: Entry) -> Iterator[Run]:
    data = _text(vectors, entry)
    claims = _claims(data)
    registers = ("mrtd", "rtmr1") if "tdx_mrtd" in claims else ("mrenclave",)
    found = {name: claims.get(f"{'tdx' if len(registers) > 1 else 'sgx'}_{name}", "01" * 32) for name in registers}
    status = claims.get("attester_tcb_status", "UpToDate")
    stated = {
        "measurement": [found], "tcb_status": [status], "algorithm": [entry["alg"]],
        "issuer": ["Intel Trust Authority"], "gpu": "none",
    }  # fmt: skip
    run = {
        "tee": "ita", "evidence": data, "at": _at(entry),
        "items": (Item("ita-certs", (vectors / "ita/ita_prod_2023_jwks.json").read_bytes()),),
    }  # fmt: skip
    if "policy decision" in entry["expected"]:
        yield Run(**run, way="listed", tables={"ita": stated})
        yield Run(**run, way="not listed", tables={"ita": stated | {"tcb_status": ["UpToDate"]}})
    else:
        yield Run(**run, tables={"ita": stated})


def _claims(token: bytes) -> dict:
    """What a token says, unverified: a policy for it has to name that."""
    body = token.split(b".")[1]
    return json.loads(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))


def _azure(vectors: Path, entry: Entry) -> Iterator[Run]:
    data, items, at = azure.sample(vectors, entry)
    boot = (4, 8, 9, 11, 12, 14)
    pcrs = entry.get("pcrs", {"4": "01" * 32})
    tables: Tables = {"azure-vtpm": {"measurement": [{f"pcr{n}": pcrs.get(str(n), "00" * 32) for n in boot}]}}
    if entry["hw"] == "snp":
        tables["snp"] = {"measurement": [entry["measurement"]], "products": [entry["product"]], "vmpl": entry["vmpl"]}
    else:
        tables["tdx"] = {"measurement": [{"mrtd": entry["mrtd"], "rtmr1": "00" * 48, "rtmr2": "00" * 48}]}
    yield Run(
        tee="azure-vtpm", evidence=data, at=at, items=tuple(items), tables=tables, inside=(entry["hw"],),
    )  # fmt: skip


def _maa(vectors: Path, entry: Entry) -> Iterator[Run]:
    data, issuer = _text(vectors, entry), entry["iss"]
    hardware = _claims(data)["x-ms-isolation-tee"]
    keys = {"issuer": issuer, "keys": _json(vectors, entry["keys"])["keys"]}
    stated = {
        "attestation_type": ["azurevm"], "isolation": [hardware["x-ms-attestation-type"]],
        "measurement": [{"launch_measurement": hardware["x-ms-sevsnpvm-launchmeasurement"]}],
        "compliance": ["azure-compliant-cvm"], "secure_boot": "required",
    }  # fmt: skip
    for way, named in (("that issuer", issuer), ("another issuer", "https://sharedweu.weu.attest.azure.net")):
        yield Run(
            tee="azure-maa", evidence=data, at=_at(entry), way=way,
            items=(Item("jwks", json.dumps(keys).encode()),), tables={"azure-maa": stated | {"issuer": [named]}},
        )  # fmt: skip


def _space(vectors: Path, entry: Entry) -> Iterator[Run]:
    data = _text(vectors, entry)
    claims = _claims(data)
    keys = {"issuer": entry["iss"], "keys": _json(vectors, "google/synddb_cs_jwks.json")["keys"]}
    stated = {
        "audience": [claims["aud"]], "hwmodel": [claims["hwmodel"]], "swname": [claims["swname"]],
        "image_digest": [claims["submods"]["container"]["image_digest"]],
    }  # fmt: skip
    yield Run(
        tee="google-space", evidence=data, items=(Item("jwks", json.dumps(keys).encode()),),
        at=_at(entry) if "verify_at" in entry else datetime.fromtimestamp(entry["iat"], UTC),
        tables={"google-space": stated},
    )  # fmt: skip


def _vtpm(vectors: Path, entry: Entry) -> Iterator[Run]:
    stated = {"measurement": [{"pcr4": "01" * 32, "pcr8": "01" * 32}], "technology": ["AMD_SEV"]}
    # The real attestation is of 2021.
    yield Run(
        tee="google-vtpm", evidence=(vectors / entry["file"]).read_bytes(), at=datetime(2022, 1, 1, tzinfo=UTC),
        tables={"google-vtpm": stated, "snp": {"measurement": ["01" * 48], "products": ["Milan"]}}, inside=("snp",),
    )  # fmt: skip


def _unknown(vectors: Path, entry: Entry) -> Iterator[Run]:
    tee = entry["platform"].removesuffix("-eat")
    yield Run(tee=tee, evidence=(vectors / entry["file"]).read_bytes(), at=SOME_DAY)


PLATFORMS: Mapping[str, Callable[[Path, Entry], Iterator[Run]]] = {
    "aws-nitro": _nitro,
    "amd-snp": _snp,
    "intel-sgx": _intel,
    "intel-tdx": _intel,
    "nvidia-gpu": _nvidia,
    "nvidia-switch": _nvidia,
    "nvidia-nras": _nras,
    "nvidia-nvat-local": _nras,
    "intel-trust-authority": _ita,
    "azure-cvm": _azure,
    "azure-maa": _maa,
    "gcp-confidential-space": _space,
    "gcp-gce-vtpm": _vtpm,
    "arm-cca-eat": _unknown,
}


def cases(vectors: Path) -> tuple[Case, ...]:
    """Every run of every entry. Raises KeyError for a platform or an expected text that is not known here, and
    ValueError where an entry's runs are not those that its text means."""
    found: list[Case] = []
    for number, entry in enumerate(_json(vectors, "vectors.json")["vectors"]):
        meaning = MEANINGS[entry["expected"]]
        runs = tuple(PLATFORMS[entry["platform"]](vectors, entry))
        ways = {run.way for run in runs}
        known = all(run.tee in FORMATS for run in runs)
        if not runs or (known and not (ways <= set(meaning) and (ways >= set(meaning) - SOME or ways & SOME))):
            raise ValueError(f"{entry['file']}: {sorted(ways)} is not how {entry['expected']!r} is looked at")
        for run in runs:
            code, check = meaning[run.way] if run.tee in FORMATS else (2, "")
            found.append(
                Case(
                    number=number, file=entry["file"], expected=entry["expected"], run=run, exit_code=code,
                    check=check.replace("*", run.tee),
                )
            )  # fmt: skip
    return tuple(found)


# Running them ---------------------------------------------------------------------------------------------------------


def policy(run: Run) -> str:
    """A complete policy: what the run states, a placeholder format beside a GPU's, and a waiver for all that can be."""
    tables, lists = dict(run.tables), {"accept": [run.tee], "inside": list(run.inside)}
    if run.tee not in FORMATS or registry.get(run.tee).role is Role.GPU:
        lists = {"accept": ["nitro"], "gpu": [run.tee] if run.tee in FORMATS else []}
        tables = {"nitro": {"measurement": [{"pcr0": "01" * 48}]}, **(tables if lists["gpu"] else {})}
    names = [name for each in lists.values() for name in each]
    waived = ["freshness.challenge", "model.sha256", "config.sha256"]
    for name in names:
        stated = tables.get(name, {})
        waived += [
            f"{name}.{each.name}" for each in registry.get(name).rules if each.waivable and each.name not in stated
        ]
    document = {
        "schema": SCHEMA,
        "name": "a collected file",
        "tee": {key: value for key, value in lists.items() if value},
        **{name: tables[name] for name in names},
        "freshness": {"max_age_seconds": 300, "max_clock_skew_seconds": 60, "reverify_after_seconds": 3600},
        "key": {"scope": ["replica"]},
        "waive": [{"rule": rule, "reason": REASON} for rule in waived],
    }
    return "\n".join(toml.write(document)) + "\n"


def arguments(case: Case, folder: Path) -> list[str]:
    """Write the run's files below `folder`; the words after `cloister`."""
    place = folder / f"{case.number}{case.run.way.replace(' ', '-')}"
    collateral = place / "collateral"
    collateral.mkdir(parents=True)
    (place / "evidence").write_bytes(case.run.evidence)
    (place / "policy.toml").write_text(policy(case.run))
    for at, item in enumerate(case.run.items):
        (collateral / f"{item.kind}.{at}").write_bytes(item.data)
    return [
        "verify", str(place / "evidence"), "--tee", case.run.tee, "-p", str(place / "policy.toml"),
        "--collateral", str(collateral), "--at", case.run.at.isoformat(), "--unbound", REASON, "--json",
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a run came to; `check` is the one that failed, `verdict` None where there is none (exit 2)."""

    exit_code: int
    check: str
    verdict: dict | None

    def status(self, check: str) -> str:
        """What became of a check."""
        return next((each["status"] for each in (self.verdict or {})["checks"] if each["id"] == check), "absent")


def read(exit_code: int, stdout: str) -> Seen:
    """From what the command printed."""
    verdict = json.loads(stdout) if stdout else None
    failed = [each["id"] for each in (verdict or {"checks": []})["checks"] if each["status"] == "failed"]
    return Seen(exit_code=exit_code, check=" ".join(failed), verdict=verdict)


def invoke(words: list[str]) -> tuple[int, str]:
    """The command line in this process; any exception but its own exit is raised."""
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    return done.exit_code, done.stdout
