"""The Terraform module with the real provider's schema and mocked answers, and its key policy against `cloister policy kms`.

Nothing is applied to AWS. Skipped, with a notice, where terraform or a local copy of the provider is missing: put one into
a folder of terraform's own (`~/.terraform.d/plugins`), or name a mirror's folder in CLOISTER_TERRAFORM_MIRROR.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
import typer

from cloister.cli.main import app
from cloister.platforms.aws_nitro import rules
from cloister.policy.kms import KeyPolicy

MODULE = Path(str(resources.files("cloister.platforms.aws_nitro"))) / "deploy" / "terraform"
PROVIDER = "registry.terraform.io/hashicorp/aws"
ACCOUNT, ROLE = "111122223333", "arn:aws:iam::111122223333:role/notes-parent"
OWNER = "arn:aws:iam::111122223333:role/owner"
NO_IMAGE = "f" * 96


def mirror() -> Path | None:
    named = os.environ.get("CLOISTER_TERRAFORM_MIRROR")
    shared = [Path("/usr/local/share/terraform/plugins"), Path("/usr/share/terraform/plugins"), *Path("/opt").glob("*")]
    for folder in [Path(named)] if named else [Path.home() / ".terraform.d" / "plugins", *shared]:
        if any(folder.glob(f"{PROVIDER}/*/*/terraform-provider-aws*")):
            return folder
    return None


needs_provider = pytest.mark.skipif(
    shutil.which("terraform") is None or mirror() is None,
    reason="no terraform, or no local copy of its AWS provider: the Terraform module is not checked",
)
pytestmark = pytest.mark.timeout(300)


class Terraform:
    """A copy of the module, initialised."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "module"
        shutil.copytree(MODULE, self.folder)
        (folder / "cli.tfrc").write_text(
            f'provider_installation {{\n  filesystem_mirror {{ path = "{mirror()}" }}\n}}\ndisable_checkpoint = true\n'
        )
        self._env = {
            **os.environ, "TF_CLI_CONFIG_FILE": str(folder / "cli.tfrc"), "TF_IN_AUTOMATION": "1", "HOME": str(folder),
        }  # fmt: skip
        self("init", "-input=false")

    def __call__(self, *words: str, text: str | None = None, rc: int = 0) -> str:
        done = subprocess.run(
            ["terraform", f"-chdir={self.folder}", *words, *(["-no-color"] if words[0] != "console" else [])],
            env=self._env, input=text, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        assert done.returncode == rc, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terraform]:
    folder = tmp_path_factory.mktemp("terraform")
    yield Terraform(folder)
    # The provider is large.
    shutil.rmtree(folder)


@needs_provider
def test_it_is_valid_and_formatted(terraform: Terraform) -> None:
    terraform("validate")
    terraform("fmt", "-check", "-recursive")


@needs_provider
def test_its_own_tests_pass(terraform: Terraform) -> None:
    said = terraform("test", "-filter=tests/module.tftest.hcl")
    assert re.search(r"^Success! \d\d passed, 0 failed", said, re.MULTILINE), said


POLICIES: dict[str, tuple[dict[str, object], KeyPolicy]] = {
    "bare": ({"owner_arn": None, "model": None}, KeyPolicy(account=ACCOUNT, role=ROLE, pcr0=NO_IMAGE)),
    "owner": ({"model": None, "pcr0": "0A" * 48}, KeyPolicy(account=ACCOUNT, role=ROLE, pcr0="0a" * 48, owner=OWNER)),
    "model": (
        {"pcr8": "0B" * 48, "pcr0": "0a" * 48},
        KeyPolicy(account=ACCOUNT, role=ROLE, pcr0="0a" * 48, pcr8="0b" * 48, owner=OWNER, model="m"),
    ),
    "version": (
        {"model": {"name": "m", "bucket": "models", "key": "k", "version": "7"}, "owner_arn": None},
        KeyPolicy(account=ACCOUNT, role=ROLE, pcr0=NO_IMAGE, model="m", version="7"),
    ),
}


@needs_provider
def test_the_key_s_policy_is_the_one_that_cloister_prints(terraform: Terraform) -> None:
    """One document, made twice: in Python for those who manage keys by hand, in the module for those who do not."""
    head = (MODULE / "tests" / "module.tftest.hcl").read_text()
    mock = head[head.index("mock_provider") : head.index("\nvariables {")]
    given = {
        "name": "notes", "vpc_id": "vpc-0", "subnet_id": "subnet-0", "ingress_cidrs": ["10.0.0.0/8"], "owner_arn": OWNER,
        "image": {"bucket": "images", "prefix": "p"}, "model": {"name": "m", "bucket": "models", "key": "k"},
    }  # fmt: skip
    runs = [mock]
    for name, (changes, rules_) in POLICIES.items():
        (terraform.folder / f"{name}.json").write_text(json.dumps(rules_.document()))
        variables = "\n".join(f"    {key} = {json.dumps(value)}" for key, value in {**given, **changes}.items())
        runs.append(
            f'run "{name}" {{\n  command = apply\n  variables {{\n{variables}\n  }}\n  assert {{\n'
            f'    condition = jsondecode(aws_kms_key.release.policy) == jsondecode(file("./{name}.json"))\n'
            f'    error_message = "another policy"\n  }}\n}}\n'
        )
    file = terraform.folder / "tests" / "policies.tftest.hcl"
    file.write_text("\n".join(runs))
    said = terraform("test", "-filter=tests/policies.tftest.hcl")
    assert f"{len(POLICIES)} passed, 0 failed" in said
    # The comparison can fail: one condition less in Python's document.
    document = POLICIES["version"][1].document()
    del document["Statement"][1]["Condition"]["StringEquals"]  # type: ignore[index]
    (terraform.folder / "version.json").write_text(json.dumps(document))
    assert f"{len(POLICIES) - 1} passed, 1 failed" in terraform("test", "-filter=tests/policies.tftest.hcl", rc=1)
    file.unlink()


@needs_provider
def test_the_first_boot_is_a_program_that_uses_options_that_there_are(terraform: Terraform, tmp_path: Path) -> None:
    call = (
        'base64encode(templatefile("user_data.sh.tftpl", { name = "notes", region = "eu-west-1", package = "cloister==0.1.0",'
        ' port = 8080, memory = 2048, cpus = 2, source = "s3://images/p", files = ["notes.eif"], log_group = "/cloister/notes",'
        ' model = { name = "m", bucket = "models", key = "k" } }))'
    )
    script = base64.b64decode(json.loads(terraform("console", text=call))).decode()
    file = tmp_path / "user-data"
    file.write_text(script)
    subprocess.run(["bash", "-n", str(file)], check=True)
    written = dict(re.findall(r"cat > (\S+) <<'END'\n(.*?)\nEND\n", script, re.DOTALL))
    assert written["/etc/nitro_enclaves/allocator.yaml"] == "---\nmemory_mib: 2048\ncpu_count: 2"
    collected = json.loads(written["/etc/cloister-log.json"])["logs"]["logs_collected"]["files"]["collect_list"]
    assert {each["log_group_name"] for each in collected} == {"/cloister/notes"}
    unit = written["/etc/systemd/system/cloister.service"]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for verb in ("Start", "Stop"):
        (line,) = re.findall(rf"^Exec{verb}=(.*)$", unit, re.MULTILINE)
        words = shlex.split(line)
        known = {option for param in commands[words[1]].params for option in param.opts}
        used = {word for word in words if word.startswith("--")}
        assert used
        assert used <= known
    # Agent and enclave log and keep state where the service may write, and where the log is collected.
    assert "XDG_STATE_HOME=/var/lib/cloister/state" in unit
    assert all(each["file_path"].startswith("/var/lib/cloister/state/cloister/notes/") for each in collected)


def test_one_list_of_instance_types() -> None:
    types = rules.instance_types()
    assert {"t3", "vt1"} <= types["x86_64"].families
    assert types["x86_64"].minimum_vcpus > types["aarch64"].minimum_vcpus
    assert "instance_types.json" in (MODULE / "main.tf").read_text()
