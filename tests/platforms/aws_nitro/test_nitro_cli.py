"""What nitro-cli prints: real output is read, everything else is refused; its codes become advice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.errors import MalformedError, UndecidedError, UsageError
from cloister.platforms.aws_nitro import nitro_cli
from cloister.platforms.aws_nitro.errors import CODES, explain
from cloister.platforms.platform import Launch

ENTRY = {
    "EnclaveName": "n", "EnclaveID": "i-0123456789abcdef0-enc0123456789abcdef", "ProcessID": 7, "EnclaveCID": 16,
    "NumberOfCPUs": 2, "CPUIDs": [1, 5], "MemoryMiB": 512, "State": "RUNNING", "Flags": "NONE",
    "Measurements": {"HashAlgorithm": "x", "PCR0": "0a" * 48},
}  # fmt: skip


def described(**changes: object) -> bytes:
    return json.dumps([{**ENTRY, **changes}]).encode()


def test_real_output(vectors: Path) -> None:
    data = (vectors / "nitro" / "ephemeralml_enclave_describe.json").read_bytes()
    (found,) = nitro_cli.parse_describe(data)
    (plain,) = json.loads(data)
    assert found.running.name == plain["EnclaveName"]
    assert found.running.id == plain["EnclaveID"]
    assert (found.running.cid, found.running.cpus, found.running.memory_mib) == (16, 2, 4096)
    assert found.cpu_ids == tuple(plain["CPUIDs"])
    assert found.running.measurements == {k: v for k, v in plain["Measurements"].items() if k.startswith("PCR")}
    assert not found.debug
    del plain["State"], plain["Flags"], plain["Measurements"]
    started = nitro_cli.parse_run(json.dumps(plain, indent=2).encode())
    assert (started.id, started.state, dict(started.measurements)) == (found.running.id, "RUNNING", {})


def test_no_enclave_and_debug_mode() -> None:
    assert nitro_cli.parse_describe(b"[]\n") == ()
    assert nitro_cli.parse_describe(described(Flags="DEBUG_MODE"))[0].debug


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[1]", b"[{}]", b'[{"a":1,"a":2}]', b"[NaN]", b"\xff", b"[" * 100 + b"]" * 100, b"words [ E11 ]\n[]",
        described(EnclaveID="--all"), described(EnclaveID="i-0-enc0\n"), described(EnclaveID=7), described(EnclaveCID=-1),
        described(EnclaveCID=2**32), described(EnclaveCID="16"), described(EnclaveCID=True), described(State="running"),
        described(CPUIDs=[True]), described(CPUIDs=[-1]), described(CPUIDs="1"), described(NumberOfCPUs=None),
        described(EnclaveName="\x1b[31m"), described(EnclaveName="n" * 257), described(Flags=[]),
        described(Measurements={"PCR0": "0A" * 48}), described(Measurements={"PCR0": "0a"}), described(Measurements=[]),
        json.dumps([ENTRY] * (nitro_cli.MAX_ENCLAVES + 1)).encode(), b" " * (nitro_cli.MAX_OUTPUT + 1),
    ],
)  # fmt: skip
def test_malformed_output(data: bytes) -> None:
    with pytest.raises(MalformedError):
        nitro_cli.parse_describe(data)


@pytest.mark.parametrize("data", [b"[]", b"{}", b'{"Terminated":1}', b'{"Terminated":"true"}', b'{"Terminated":true'])
def test_malformed_end(data: bytes) -> None:
    with pytest.raises(MalformedError):
        nitro_cli.parse_terminate(data)


def test_codes_become_advice(tmp_path: Path) -> None:
    for code, meaning in CODES.items():
        error = explain(f"Start allocating memory...\n[ {code} ] words of theirs\n".encode(), 1, tmp_path / "log")
        assert isinstance(error, UsageError if meaning.ours else UndecidedError)
        assert code in error.message
        assert "theirs" not in error.message + error.hint
        assert str(tmp_path / "log") in error.hint
    # The last code is the outermost failure; without words the exit status is the code.
    assert "E36" in explain(b"[ E29 ] a\n[ E36 ] b", 36, None).message
    assert "E27" in explain(b"", 27, None).message
    assert "E32" in explain(b"[ E32 ]", 32, None).message
    assert isinstance(explain(b"[ E01 ]", 1, None), UsageError)
    assert "no code" in explain(b"killed", -9, None).message


def program(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "nitro-cli"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")


def test_a_program_that_floods_hangs_or_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = nitro_cli.NitroCli(tmp_path / "log")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not cli.present()
    with pytest.raises(UsageError, match="cannot run nitro-cli"):
        cli.describe()
    program(tmp_path, "yes [ | head -c 3000000", monkeypatch)
    assert cli.present()
    with pytest.raises(MalformedError, match="limit"):
        cli.describe()
    program(tmp_path, "exec sleep 60", monkeypatch)
    monkeypatch.setattr(nitro_cli, "SECONDS", 0.2)
    monkeypatch.setattr(nitro_cli.NitroCli._call, "__kwdefaults__", {"seconds": 0.2, "cut": False})
    with pytest.raises(UndecidedError, match="did not end"):
        cli.describe()


def test_what_it_says_is_kept_for_the_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "echo '[ E39 ] why' >&2; exit 39", monkeypatch)
    with pytest.raises(UndecidedError, match="E39"):
        nitro_cli.NitroCli(tmp_path / "log").describe()
    assert (tmp_path / "log").read_text() == "[ E39 ] why\n"


def test_the_time_to_boot_grows_as_nitro_cli_s_own(tmp_path: Path) -> None:
    image = tmp_path / "i.eif"
    image.write_bytes(b"x")
    launch = Launch(name="n", image=image, memory_mib=512, cpus=2)
    assert nitro_cli.boot_seconds(launch) == 180
    with image.open("r+b") as file:
        file.truncate(6 * 1024**3 + 1)
    large = Launch(name="n", image=image, memory_mib=100 * 1024 + 2, cpus=2)
    assert nitro_cli.boot_seconds(large) == 360
