"""From `cloister.toml` to an image: `NAME.eif`, `measurements.json`, and the same root file system as an OCI layout."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path

import zstandard

from cloister import __version__
from cloister.errors import UsageError
from cloister.image import debian, eif, oci, provenance, rootfs, toolchain
from cloister.image.built import MEASUREMENTS_SCHEMA, Built
from cloister.image.config import ImageConfig
from cloister.image.tree import Tree, cpio, manifest

#: Where aws-nitro-enclaves-cli-devel puts AWS's kernel.
AWS_BLOBS = Path("/usr/share/nitro_enclaves/blobs")
#: AWS's own command line, and a root file system without tmpfs's limit of half the memory.
CMDLINE = (
    "reboot=k panic=30 pci=off nomodules console=ttyS0 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd"
    " random.trust_cpu=on rootfstype=ramfs"
)
COMMAND = b"/usr/bin/python3.11\n-I\n-m\ncloister.enclave\n"
ENVIRONMENT = b"PATH=/usr/bin\nHOME=/\nLC_ALL=C.UTF-8\nOMP_WAIT_POLICY=passive\n"
#: Every version of the kernel that Nitro boots reads zstd; level and thread count decide the bytes.
COMPRESSION_LEVEL, COMPRESSION_THREADS = 12, 2


def build(config: ImageConfig, out: Path, *, lock_file: Path | None = None) -> Built:
    """Build into `out`; the same inputs give the same bytes. Raises UsageError, UndecidedError, MalformedError."""
    lock = read_lock(lock_file)
    tree = rootfs.build(config, lock)
    image = assemble(config, tree)
    out.mkdir(parents=True, exist_ok=True)
    data = eif.write(image)
    registers = image.measurements()
    target = out / f"{config.name}.eif"
    _write(target, data)
    bill = provenance.bill_of_materials(config, lock, rootfs.requirements())
    # A path is nobody's business but the builder's.
    kernel = config.kernel if config.kernel in ("small", "aws") else "own"
    document = {
        "schema": MEASUREMENTS_SCHEMA,
        "name": config.name,
        "version": config.version,
        "image": {"file": target.name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)},
        "hash_algorithm": "SHA384",
        "measurements": {f"PCR{index}": value.hex() for index, value in sorted(registers.items())},
        "parts": {
            "kernel": kernel,
            "kernel_sha256": hashlib.sha256(image.kernel).hexdigest(),
            "cmdline": image.cmdline.decode("ascii"),
            "ramdisks_sha256": [hashlib.sha256(each).hexdigest() for each in image.ramdisks],
            "manifest_sha256": hashlib.sha256(manifest(tree)).hexdigest(),
            "replica_sha256": hashlib.sha256(config.replica()).hexdigest(),
            "cloister": __version__,
            "zstandard": zstandard.__version__,
        },
    }
    measurements = out / "measurements.json"
    _write(measurements, _json(document))
    _write(out / "sbom.cdx.json", _json(bill))
    _write(out / "provenance.json", _json(provenance.statement(config, document, bill)))
    oci.write(tree, out / "oci", name=config.name, command=COMMAND, environment=ENVIRONMENT)
    return Built(image=target, measurements=measurements, registers=registers, size=len(data), kernel=kernel)


def read_lock(file: Path | None) -> debian.Lock:
    """The given lock, or the one that comes with this version of the package."""
    try:
        data = (
            file.read_bytes() if file else resources.files("cloister.image").joinpath("rootfs.lock.json").read_bytes()
        )
    except OSError as error:
        raise UsageError(f"cannot read the lock file: {error.strerror}") from None
    return debian.Lock.from_json(data)


def assemble(config: ImageConfig, tree: Tree) -> eif.Image:
    """Kernel, command line and two ramdisks, signed where the configuration asks for it."""
    kernel, module, init = _kernel(config)
    boot, application = Tree(), Tree()
    boot.directory("dev")
    boot.file("init", init, 0o755)
    if module is not None:
        boot.file("nsm.ko", module)
    for name, entry in tree:
        application.put(f"rootfs/{name}", entry)
    # Not in the boot ramdisk: PCR1 stays the same for every image of one kernel and init.
    application.file("manifest", manifest(tree))
    application.file("cmd", COMMAND)
    application.file("env", ENVIRONMENT)
    compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, threads=COMPRESSION_THREADS)
    compressed = compressor.compress(cpio(application))
    image = eif.Image(
        kernel=kernel,
        cmdline=CMDLINE.encode("ascii"),
        ramdisks=(cpio(boot), compressed + bytes(-len(compressed) % 4)),
        metadata=_json(_metadata(config)),
        default_memory=config.memory_mib * 1024 * 1024,
        default_cpus=config.cpus,
    )
    if config.signing_key is None or config.certificate is None:
        return image
    try:
        key, certificate = config.signing_key.read_bytes(), config.certificate.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the signing key or certificate: {error.strerror}") from None
    return eif.signed(image, key, certificate)


def _kernel(config: ImageConfig) -> tuple[bytes, bytes | None, bytes]:
    """Kernel, NSM module if it needs one, init."""
    init = toolchain.INIT.make().read_bytes()
    if config.kernel == "small":
        return toolchain.KERNEL.make().read_bytes(), None, init
    folder = AWS_BLOBS if config.kernel == "aws" else Path(config.kernel).parent
    file = folder / "bzImage" if config.kernel == "aws" else Path(config.kernel)
    try:
        module = folder / "nsm.ko"
        return file.read_bytes(), module.read_bytes() if module.exists() else None, init
    except OSError as error:
        raise UsageError(
            f"cannot read the kernel {file}: {error.strerror}",
            hint="Install aws-nitro-enclaves-cli-devel for AWS's kernel.",
        ) from None


def _metadata(config: ImageConfig) -> dict[str, object]:
    """The metadata section that nitro-cli shows; not measured, so nothing of the building machine is in it either."""
    return {
        "ImageName": config.name,
        "ImageVersion": config.version,
        "BuildMetadata": {
            "BuildTime": "1970-01-01T00:00:00+00:00",
            "BuildTool": "cloister",
            "BuildToolVersion": __version__,
            "OperatingSystem": "Linux",
            "KernelVersion": "Unknown",
        },
        "DockerInfo": {},
        "CustomMetadata": None,
    }


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=False) + "\n").encode("utf-8")


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(data)
    temporary.replace(path)
