"""One bit of any input: the registers that should change do, and neither the policy nor the key is for the changed image."""

from __future__ import annotations

import dataclasses
import io
import tarfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib import resources
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from tests.image.test_eif import issue
from tests.platforms.qemu_nitro.kms import lab as labs
from tests.policy import samples
from tests.tee import documents as d

import cloister
from cloister.errors import RefusedError, ReleaseDeniedError, UndecidedError
from cloister.image import build, cache, config, debian, rootfs, toolchain
from cloister.image.tree import Tree
from cloister.platforms.qemu_nitro import lab, reference
from cloister.policy.document import Policy
from cloister.tee.nitro.rules import Measurement
from cloister.weights.keys import WrappedKey

needs_toolchain = pytest.mark.skipif(not lab.ready(), reason="the lab is not prepared (make lab): no image is built")
pytestmark = pytest.mark.timeout(600)

COMMON = """
[image]
name = "notes"
version = "1"
[engine]
context = 512
slots = 2
threads = 2
batch = 256
queue = 8
[keys]
serve = 3600
grace = 600
early = 60
[egress]
allow = ["a.example:443"]
[nitro]
memory_mib = 1024
cpus = 2
kernel = "bzImage"
signing_key = "k.pem"
certificate = "c.pem"
"""
SEALED = """
[model]
sealed = "m"
owner = "owner.pem"
minimum_version = 4
id = "i"
"""
TENANT = f"""
[[tenant]]
id = "t"
key_sha256 = "{"0a" * 32}"
"""
KMS = """
[release]
service = "aws-kms"
region = "r"
key = "arn:k"
roots = "roots.pem"
"""
BROKER = """
[release]
service = "kbs"
host = "b.example"
port = 444
roots = "roots.pem"
"""
TEXTS = {
    "kms": COMMON + SEALED + KMS,
    "broker": COMMON + SEALED + BROKER,
    "bundled": COMMON + TENANT,
    "file": COMMON + '[model]\nfile = "model.gguf"\nid = "i"\n',
}


def flipped(data: bytes, at: int | None = None) -> bytes:
    at = len(data) // 2 if at is None else at % len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def bits(one: bytes, other: bytes) -> int:
    assert len(one) == len(other)
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))


def pem_of(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@dataclass
class Inputs:
    """What an image is made from: a folder, the system that all share, init."""

    folder: Path
    text: str
    system: Tree
    lock: debian.Lock
    init: bytes

    def registers(self, monkeypatch: pytest.MonkeyPatch) -> dict[int, bytes]:
        """The real build, but for how well it compresses."""
        tree = Tree(dict(self.system.entries))
        chosen = self.config()
        rootfs.configure(tree, chosen, self.lock)
        with monkeypatch.context() as patch:
            patch.setattr(build, "COMPRESSION_LEVEL", 1)
            kernel, module, _ = build._kernel(chosen)
            patch.setattr(build, "_kernel", lambda _: (kernel, module, self.init))
            return build.assemble(chosen, tree).measurements()

    def config(self) -> config.ImageConfig:
        (self.folder / "cloister.toml").write_text(self.text)
        return config.load(self.folder / "cloister.toml")

    def flip(self, name: str, at: int | None = None) -> None:
        file = self.folder / name
        file.write_bytes(flipped(file.read_bytes(), at))


@pytest.fixture(scope="module")
def system() -> Tree:
    return rootfs.system(build.read_lock(None))


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    key, certificate = issue(SECP384R1())
    return {
        "k.pem": key, "c.pem": certificate, "bzImage": toolchain.KERNEL.make().read_bytes(),
        "nsm.ko": b"a module", "roots.pem": certificate, "model.gguf": bytes(range(256)) * 16,
        "owner.pem": pem_of(Ed25519PrivateKey.generate().public_key()),
    }  # fmt: skip


@pytest.fixture
def inputs(tmp_path: Path, system: Tree, files: dict[str, bytes]) -> Callable[[str], Inputs]:
    def make(kind: str) -> Inputs:
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        init = toolchain.INIT.make().read_bytes()
        return Inputs(tmp_path, TEXTS[kind], system, build.read_lock(None), init)

    return make


# --- Who has to refuse ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relying:
    """Those that rely on one image's registers: a client's policy, and a key of the SIMULATED KMS with its policy."""

    registers: dict[int, bytes]
    policy: Policy
    kms: labs.Lab
    key_arn: str
    wrapped: WrappedKey

    def check(self, registers: dict[int, bytes]) -> None:
        """Both accept these registers, or both refuse them."""
        evidence = d.attester(registers).attest(samples.BINDING, samples.CHALLENGE)
        enclave = labs.Enclave(self.kms.root, {index: value.hex() for index, value in registers.items()})
        release = self.kms.release(enclave, key_arn=self.key_arn)
        if registers == self.registers:
            assert samples.run(evidence, policy=self.policy).accepted
            assert len(release.release(self.wrapped)) == 32
            return
        with pytest.raises(RefusedError) as refused:
            samples.run(evidence, policy=self.policy)
        assert refused.value.verdict is not None
        assert "policy.nitro.measurement" in refused.value.verdict.summary()
        with pytest.raises(ReleaseDeniedError) as denied:
            release.release(self.wrapped)
        assert "AccessDeniedException" in denied.value.message


@pytest.fixture(scope="module")
def relying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[dict[int, bytes]], Relying]]:
    """Makes whoever relies on an image, once for each."""
    pytest.importorskip("boto3")
    made: dict[bytes, Relying] = {}
    with labs.run(tmp_path_factory.mktemp("kms")) as kms:

        def of(registers: dict[int, bytes]) -> Relying:
            if registers[0] not in made:
                named = {f"pcr{index}": value.hex() for index, value in registers.items()}
                rules = labs.policy(pcr0=named["pcr0"], pcr8=named["pcr8"])
                kms.key_arn = kms.boto("admin").create_key(Policy=rules)["KeyMetadata"]["Arn"]
                _, wrapped = kms.wrapper().generate(labs.CONTEXT)
                policy = replace(samples.POLICY, demands={"nitro": {"measurement": (Measurement(**named),)}})
                made[registers[0]] = Relying(registers, policy, kms, kms.key_arn, wrapped)
            return made[registers[0]]

        yield of


# --- The inputs -----------------------------------------------------------------------------------------------------


def _text(old: str, new: str) -> Callable[[Inputs, pytest.MonkeyPatch], None]:
    def change(inputs: Inputs, _: pytest.MonkeyPatch) -> None:
        assert inputs.text.count(old) == 1
        assert bits(old.encode(), new.encode()) == 1
        inputs.text = inputs.text.replace(old, new)

    return change


def _file(name: str, at: int | None = None) -> Callable[[Inputs, pytest.MonkeyPatch], None]:
    return lambda inputs, _: inputs.flip(name, at)


def _constant(name: str) -> Callable[[Inputs, pytest.MonkeyPatch], None]:
    def change(_: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
        value = getattr(build, name)
        data = value.encode() if isinstance(value, str) else value
        monkeypatch.setattr(build, name, flipped(data).decode() if isinstance(value, str) else flipped(data))

    return change


def _owner(inputs: Inputs, _: pytest.MonkeyPatch) -> None:
    key = load_pem_public_key((inputs.folder / "owner.pem").read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    other = Ed25519PublicKey.from_public_bytes(flipped(key.public_bytes_raw()))
    (inputs.folder / "owner.pem").write_bytes(pem_of(other))


def _certificate(name: str) -> Callable[[Inputs, pytest.MonkeyPatch], None]:
    """In the certificate's own signature: name, key and everything else that it says stay."""

    def change(inputs: Inputs, _: pytest.MonkeyPatch) -> None:
        file = inputs.folder / name
        der = x509.load_pem_x509_certificate(file.read_bytes()).public_bytes(Encoding.DER)
        file.write_bytes(x509.load_der_x509_certificate(flipped(der, -1)).public_bytes(Encoding.PEM))

    return change


def _signer(inputs: Inputs, _: pytest.MonkeyPatch) -> None:
    key, certificate = issue(SECP384R1())
    (inputs.folder / "k.pem").write_bytes(key)
    (inputs.folder / "c.pem").write_bytes(certificate)


def _init(inputs: Inputs, _: pytest.MonkeyPatch) -> None:
    source = resources.files("cloister.image").joinpath("init.c").read_bytes()
    at = source.index(b"the manifest is")
    (inputs.folder / "init.c").write_bytes(flipped(source, at))
    toolchain.run(toolchain.INIT.system(), inputs.folder, toolchain.INIT.command, timeout=300)
    inputs.init = (inputs.folder / "init").read_bytes()


def _module(file: str) -> Callable[[Inputs, pytest.MonkeyPatch], None]:
    def change(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
        source, copy = Path(cloister.__file__).parent, inputs.folder / "cloister"
        for path in source.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                target = copy / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        data = (copy / file).read_bytes()
        (copy / file).write_bytes(flipped(data, data.index(b'"""') + 3 if file.endswith(".py") else None))
        with monkeypatch.context() as patch:
            patch.setattr(cloister, "__file__", str(copy / "__init__.py"))
            inputs.system = rootfs.system(inputs.lock)

    return change


def _package(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another library in Debian's package of zlib, under a lock that names it; the rest of the cache is the real one."""
    chosen = next(package for package in inputs.lock.packages if package.name == "zlib1g")
    real, home = cache.home(), inputs.folder / "cache/cloister"
    (home / "files").mkdir(parents=True)
    for path in real.iterdir():
        if path.name.startswith(("wheels-", "kernel-", "init-", "toolchain-")):
            (home / path.name).symlink_to(path)
    for package, path in debian.fetch(inputs.lock):
        (home / "files" / package.sha256).symlink_to(path)
    data = _deb_with_a_flipped_bit(real / "files" / chosen.sha256)
    digest = sha256(data).hexdigest()
    (home / "files" / digest).write_bytes(data)
    packages = tuple(
        replace(package, sha256=digest, size=len(data)) if package == chosen else package
        for package in inputs.lock.packages
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(inputs.folder / "cache"))
    inputs.lock = replace(inputs.lock, packages=packages)
    inputs.system = rootfs.system(inputs.lock)


def _deb_with_a_flipped_bit(package: Path) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, member, content in debian.members(package):
            # In the dynamic symbols' text of the library: what the program is stays readable.
            changed = (
                flipped(content, content.index(b"inflate")) if b"inflate" in content and ".so" in name else content
            )
            archive.addfile(member, io.BytesIO(changed))
    data = packed.getvalue()
    return b"!<arch>\n" + b"data.tar".ljust(48) + str(len(data)).encode().ljust(10) + b"`\n" + data


ALL, SYSTEM, APPLICATION, SIGNER, NOTHING = {0, 1, 2}, {0, 1}, {0, 2}, {8}, set[int]()
#: Keys of cloister.toml under their names, then what is no key; which description; the change; the registers it moves.
ROWS: dict[str, tuple[str, Callable[[Inputs, pytest.MonkeyPatch], None], set[int]]] = {
    "image.name": ("kms", _text('name = "notes"', 'name = "ootes"'), APPLICATION),
    "model.sealed": ("kms", _text('sealed = "m"', 'sealed = "l"'), APPLICATION),
    "model.owner": ("kms", _owner, APPLICATION),
    "model.minimum_version": ("kms", _text("minimum_version = 4", "minimum_version = 5"), APPLICATION),
    "model.id": ("kms", _text('id = "i"', 'id = "h"'), APPLICATION),
    "model.file": ("file", _file("model.gguf"), APPLICATION),
    "engine.context": ("kms", _text("context = 512", "context = 513"), APPLICATION),
    "engine.slots": ("kms", _text("slots = 2", "slots = 3"), APPLICATION),
    "engine.threads": ("kms", _text("threads = 2", "threads = 3"), APPLICATION),
    "engine.batch": ("kms", _text("batch = 256", "batch = 257"), APPLICATION),
    "engine.queue": ("kms", _text("queue = 8", "queue = 9"), APPLICATION),
    "keys.serve": ("kms", _text("serve = 3600", "serve = 3601"), APPLICATION),
    "keys.grace": ("kms", _text("grace = 600", "grace = 601"), APPLICATION),
    "keys.early": ("kms", _text("early = 60", "early = 61"), APPLICATION),
    "egress.allow": ("kms", _text("a.example", "c.example"), APPLICATION),
    "release.region": ("kms", _text('region = "r"', 'region = "s"'), APPLICATION),
    "release.key": ("kms", _text("arn:k", "arn:j"), APPLICATION),
    "release.roots": ("kms", _certificate("roots.pem"), APPLICATION),
    "release.host": ("broker", _text("b.example", "c.example"), APPLICATION),
    "release.port": ("broker", _text("port = 444", "port = 445"), APPLICATION),
    "tenant.id": ("bundled", _text('id = "t"', 'id = "u"'), APPLICATION),
    "tenant.key_sha256": ("bundled", _text("0a" * 32, "0c" + "0a" * 31), APPLICATION),
    "nitro.kernel": ("kms", _file("bzImage"), SYSTEM),
    "nitro.signing_key": ("kms", _signer, SIGNER),
    "nitro.certificate": ("kms", _certificate("c.pem"), SIGNER),
    "nsm.ko": ("kms", _file("nsm.ko"), SYSTEM),
    "init.c": ("kms", _init, SYSTEM),
    "command line": ("kms", _constant("CMDLINE"), SYSTEM),
    "command": ("kms", _constant("COMMAND"), APPLICATION),
    "environment": ("kms", _constant("ENVIRONMENT"), APPLICATION),
    "a module": ("kms", _module("enclave/boot.py"), APPLICATION),
    "the bundled model": ("bundled", _module("enclave/engine/bundled/cloister-notes-q8_0.gguf"), APPLICATION),
    "a package of the lock": ("kms", _package, APPLICATION),
    # Whoever starts the enclave chooses these; the image only suggests them, and its version is a label.
    "image.version": ("kms", _text('version = "1"', 'version = "0"'), NOTHING),
    "nitro.memory_mib": ("kms", _text("memory_mib = 1024", "memory_mib = 1025"), NOTHING),
    "nitro.cpus": ("kms", _text("cpus = 2", "cpus = 3"), NOTHING),
}
_BASES: dict[str, dict[int, bytes]] = {}


@needs_toolchain
@pytest.mark.parametrize("name", ROWS)
def test_one_bit(
    name: str,
    inputs: Callable[[str], Inputs],
    relying: Callable[[dict[int, bytes]], Relying],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind, change, expected = ROWS[name]
    if kind not in _BASES:
        _BASES[kind] = inputs(kind).registers(monkeypatch)
    before = _BASES[kind]
    changed = inputs(kind)
    change(changed, monkeypatch)
    after = changed.registers(monkeypatch)
    assert before.keys() == after.keys() == {0, 1, 2, 8}
    assert {index for index in before if before[index] != after[index]} == expected
    monkeypatch.undo()
    relying(before).check(after)


def test_every_key_is_in_the_table() -> None:
    keys = {
        f"{table}.{key}"
        for text in TEXTS.values()
        for table, entries in tomllib.loads(text).items()
        for keys in (entries if isinstance(entries, list) else [entries])
        for key in keys
    }
    # Which service it is decides the other keys of its table.
    assert keys - {"release.service"} <= set(ROWS)
    tables = {field.name for field in dataclasses.fields(config.ImageConfig)}
    named = {key.split(".")[0] for key in keys} | {key.split(".")[1] for key in keys}
    assert {each.removesuffix("s") for each in tables} <= {each.removesuffix("s") for each in named}


@needs_toolchain
def test_the_service_is_measured(inputs: Callable[[str], Inputs], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (inputs(kind).registers(monkeypatch) for kind in ("kms", "broker"))
    assert {index for index in one if one[index] != other[index]} == APPLICATION


def test_a_lock_that_names_other_bytes_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No archive has a file for a digest of one other bit; here there is none that could be asked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CLOISTER_DEBIAN_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setattr(debian, "SNAPSHOT", "http://127.0.0.1:9")
    first = build.read_lock(None).packages[0]
    other = replace(first, sha256=f"{int(first.sha256, 16) ^ 1:064x}")
    with pytest.raises(UndecidedError, match="no source has"):
        rootfs.system(debian.Lock(snapshot="20260101T000000Z", packages=(other,)))


@pytest.mark.parametrize(
    "product", [toolchain.KERNEL, toolchain.INIT, reference.QEMU], ids=lambda product: product.name
)
def test_a_compiled_part_is_found_by_all_that_it_is_made_from(
    product: toolchain.Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source, the command or a lock of one other bit is another entry of the cache, so it is compiled again."""
    digests = {product.digest, replace(product, command=(*product.command[:-1], product.command[-1] + "x")).digest}
    read = product._read()
    for number in range(len(read)):
        changed = [(file, flipped(data) if at == number else data) for at, (file, data) in enumerate(read)]
        with monkeypatch.context() as patch:
            patch.setattr(toolchain.Product, "_read", lambda _, changed=changed: changed)
            digests.add(product.digest)
    real = toolchain.lock
    locks = [name for name in (product.toolchain, product.archives) if name is not None]
    for changed_lock in locks:

        def other(name: str, package: str, changed_lock: str = changed_lock) -> debian.Lock:
            lock = real(name, package)
            if name != changed_lock:
                return lock
            first = replace(lock.packages[0], sha256=f"{int(lock.packages[0].sha256, 16) ^ 1:064x}")
            return replace(lock, packages=(first, *lock.packages[1:]))

        with monkeypatch.context() as patch:
            patch.setattr(toolchain, "lock", other)
            digests.add(product.digest)
    assert len(digests) == 2 + len(read) + len(locks)
