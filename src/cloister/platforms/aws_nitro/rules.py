"""Everything that has to hold before nitro-cli is asked to start an enclave, as data: what, why, and from where.

nitro-cli tells one broken rule at a time, some only after a minute and as "boot failure". Here all are told at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources

from cloister.errors import CloisterError
from cloister.image import eif
from cloister.platforms.aws_nitro.errors import RESTART
from cloister.platforms.aws_nitro.nitro_cli import INSTALL
from cloister.platforms.aws_nitro.parent import Parent, take
from cloister.platforms.platform import Launch
from cloister.wire import strict_json

MIB = 1024 * 1024
IMAGE_RATIO = 4
MINIMUM_MIB = 64
MAX_ENCLAVES = 4
#: 0 to 2 are well known, 3 is the parent; the highest means "any".
FIRST_CID, ANY_CID = 4, 2**32 - 1
#: Measured for sealed weights without a guest (docs/measurements.md); the context's cache comes on top.
WEIGHTS_RATIO, RUNTIME_MIB = 1.15, 300

_CLI = "aws-nitro-enclaves-cli, src/enclave_proc/resource_manager.rs"
_DRIVER = "Linux, drivers/virt/nitro_enclaves/ne_misc_dev.c and include/uapi/linux/nitro_enclaves.h"
_GUIDE = "AWS Nitro Enclaves User Guide"
_ALLOCATOR = "aws-nitro-enclaves-cli, bootstrap/nitro-enclaves-allocator"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A launch, the image it names, and the instance it is for."""

    launch: Launch
    image: eif.Image
    image_bytes: int
    parent: Parent
    cid: int
    now: datetime


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`check` returns what is wrong and what to change, or None."""

    id: str
    source: str
    check: Callable[[Plan], str | None]


def broken(plan: Plan) -> dict[str, str]:
    """Every broken rule, by its identifier."""
    return {rule.id: said for rule in RULES if (said := rule.check(plan)) is not None}


def needed_mib(plan: Plan) -> int:
    """The least memory: nitro-cli's ratio, or what the unpacked image, the weights and the runtime take."""
    image = IMAGE_RATIO * -(-plan.image_bytes // MIB)
    if not plan.launch.weights:
        return max(image, MINIMUM_MIB)
    return image + -(-int(plan.launch.weights * WEIGHTS_RATIO) // MIB) + RUNTIME_MIB


def _program(plan: Plan) -> str | None:
    return None if plan.parent.nitro_cli else f"nitro-cli is not installed. {INSTALL}"


def _answers(plan: Plan) -> str | None:
    return plan.parent.trouble and f"nitro-cli cannot list the enclaves: {plan.parent.trouble}"


def _device(plan: Plan) -> str | None:
    match plan.parent.device:
        case "missing":
            return (
                "there is no /dev/nitro_enclaves: launch the instance with enclaves enabled (enclave_options),"
                " and load the module nitro_enclaves"
            )
        case "closed":
            return "/dev/nitro_enclaves is closed to this user: add it to the group ne and log in again"
    return None


def _instance(plan: Plan) -> str | None:
    name = plan.parent.instance_type
    if name is None:
        return None
    family, _, size = name.partition(".")
    for kind, types in instance_types().items():
        if family in types.families or name in types.names or family.startswith(types.prefixes):
            return f"{name} cannot run enclaves: use for example m6i.xlarge"
        if kind == plan.parent.architecture and 0 < plan.parent.cpus < types.minimum_vcpus:
            return f"{name} has {plan.parent.cpus} vCPUs, a parent of enclaves needs {types.minimum_vcpus}"
    return f"{name} is no virtual machine, and only those run enclaves" if size.startswith("metal") else None


@dataclass(frozen=True, kw_only=True)
class InstanceTypes:
    """What of one architecture cannot run enclaves, and how many vCPUs the rest needs."""

    minimum_vcpus: int
    families: frozenset[str]
    prefixes: tuple[str, ...]
    names: frozenset[str]


def instance_types() -> dict[str, InstanceTypes]:
    """By the kernel's name of the architecture; the Terraform module reads the same file."""
    file = resources.files("cloister.platforms.aws_nitro").joinpath("deploy/terraform/instance_types.json")
    outer = strict_json.Fields(strict_json.loads(file.read_bytes(), file.name, limit=65536), file.name)
    found = {}
    for name, ours in (("x86_64", "x86_64"), ("arm64", "aarch64")):
        fields = outer.member(name)
        families, prefixes, types = (
            tuple(str(each) for each in fields.array(f"excluded_{what}", limit=1000))
            for what in ("families", "prefixes", "types")
        )
        found[ours] = InstanceTypes(
            minimum_vcpus=fields.integer("minimum_vcpus"),
            families=frozenset(families),
            prefixes=prefixes,
            names=frozenset(types),
        )
    return found


def _architecture(plan: Plan) -> str | None:
    image = "aarch64" if plan.image.arm64 else "x86_64"
    if image != plan.parent.architecture:
        return f"the image is for {image}, this machine is {plan.parent.architecture}: use another instance"
    return None


def _kernel(plan: Plan) -> str | None:
    if plan.launch.kernel == "small":
        return (
            "the image has the small kernel, which has no ACPI, PCI or NUMA and only ever booted under QEMU: set"
            ' [nitro] kernel = "aws" in cloister.toml, or the path of a kernel that you answer for, and build again'
        )
    return None


def _ratio(plan: Plan) -> str | None:
    least = max(IMAGE_RATIO * -(-plan.image_bytes // MIB), MINIMUM_MIB)
    if plan.launch.memory_mib < least:
        return (
            f"memory_mib is {plan.launch.memory_mib}, nitro-cli demands {IMAGE_RATIO} times the image: at least {least}"
        )
    return None


def _weights(plan: Plan) -> str | None:
    if plan.launch.weights and plan.launch.memory_mib < needed_mib(plan):
        return (
            f"memory_mib is {plan.launch.memory_mib}, the sealed model of {-(-plan.launch.weights // MIB)} MiB,"
            f" the unpacked image and the runtime need at least {needed_mib(plan)}, and the context's cache on top"
        )
    return None


def _granule(plan: Plan) -> str | None:
    if plan.launch.memory_mib % 2:
        return f"memory_mib is {plan.launch.memory_mib}: regions are multiples of 2 MiB, make it even"
    return None


def _pages(plan: Plan) -> str | None:
    parent = plan.parent
    if parent.pool is None or len(parent.nodes) != 1:
        return None  # told by the rules of the pool
    if take(parent.free_pages, plan.launch.memory_mib * MIB) is None:
        free = ", ".join(f"{count} of {size // MIB} MiB" for size, count in sorted(parent.free_pages.items()) if count)
        return (
            f"memory_mib is {plan.launch.memory_mib}, NUMA node {next(iter(parent.nodes))} of the CPU pool has free"
            f" huge pages: {free or 'none'}. Raise memory_mib in {RESTART}"
        )
    return None


def _pool(plan: Plan) -> str | None:
    pool = plan.parent.pool
    if pool is None:
        return "the driver's CPU pool cannot be read: load the module nitro_enclaves"
    if not pool:
        return f"no CPUs are set aside for enclaves: set cpu_count in {RESTART}"
    if len(plan.parent.nodes) != 1:
        return "the CPU pool spans NUMA nodes, or its node is unknown: an enclave's CPUs and memory lie on one"
    return None


def _cores(plan: Plan) -> str | None:
    threads = plan.parent.threads_per_core
    if plan.launch.cpus < 1 or plan.launch.cpus % threads:
        return f"cpus is {plan.launch.cpus}, a core has {threads} threads and is given whole: make it a multiple"
    return None


def _free_cpus(plan: Plan) -> str | None:
    if plan.parent.pool and plan.launch.cpus > plan.parent.free_cpus:
        return (
            f"cpus is {plan.launch.cpus}, the pool has {plan.parent.free_cpus} free: end another enclave, or"
            f" raise cpu_count in {RESTART}"
        )
    return None


def _count(plan: Plan) -> str | None:
    if len(plan.parent.enclaves) >= MAX_ENCLAVES:
        return f"{len(plan.parent.enclaves)} enclaves exist on this instance, it may have {MAX_ENCLAVES}: end one"
    return None


def _name(plan: Plan) -> str | None:
    if any(each.running.name == plan.launch.name for each in plan.parent.enclaves):
        return f"an enclave {plan.launch.name} exists already: cloister down {plan.launch.name}"
    return None


def _cid(plan: Plan) -> str | None:
    if not FIRST_CID <= plan.cid < ANY_CID:
        return f"cid is {plan.cid}, it must be at least {FIRST_CID} and below {ANY_CID}"
    if any(each.running.cid == plan.cid for each in plan.parent.enclaves):
        return f"cid {plan.cid} is taken: choose another, or none to get a free one"
    return None


def _signature(plan: Plan) -> str | None:
    if not plan.image.signature:
        return None
    try:
        plan.image.check_signature()
        certificate = plan.image.certificate
    except CloisterError as error:
        return f"{error.message}: sign the image again"
    assert certificate is not None
    if not certificate.not_valid_before_utc <= plan.now <= certificate.not_valid_after_utc:
        return (
            f"the signing certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to"
            f" {certificate.not_valid_after_utc:%Y-%m-%d}, not now: nitro-cli would fail with E36, E39, E11 or E59"
        )
    return None


def _debug(plan: Plan) -> str | None:
    if plan.launch.debug and plan.launch.weights:
        return "debug mode zeroes PCR0 to PCR2, so no key is released for the sealed model: put a model in the image"
    return None


RULES: tuple[Rule, ...] = (
    Rule(id="program", source=_GUIDE, check=_program),
    Rule(id="answers", source="aws-nitro-enclaves-cli, src/enclave_proc_comm.rs", check=_answers),
    Rule(id="device", source=_DRIVER, check=_device),
    Rule(id="instance", source=f"{_GUIDE}, requirements; deploy/terraform/instance_types.json", check=_instance),
    Rule(id="architecture", source="aws-nitro-enclaves-image-format, header flags", check=_architecture),
    Rule(id="kernel", source="docs/nitro.md: what this project's own kernel leaves out", check=_kernel),
    Rule(
        id="memory.ratio", source=f"{_CLI}, ENCLAVE_MEMORY_EIF_SIZE_RATIO; {_DRIVER}, NE_MIN_MEM_REGION", check=_ratio
    ),
    Rule(id="memory.weights", source="docs/measurements.md, sealed weights without a guest", check=_weights),
    Rule(id="memory.granule", source=f"{_DRIVER}, NE_ERR_INVALID_MEM_REGION_SIZE", check=_granule),
    Rule(id="memory.pages", source=f"{_CLI}, allocate; {_DRIVER}, NE_ERR_MEM_DIFFERENT_NUMA_NODE", check=_pages),
    Rule(id="cpus.pool", source=f"{_DRIVER}, NE_CREATE_VM; {_ALLOCATOR}", check=_pool),
    Rule(id="cpus.cores", source=f"{_DRIVER}, NE_ERR_FULL_CORES_NOT_USED", check=_cores),
    Rule(id="cpus.free", source="aws-nitro-enclaves-cli, src/enclave_proc/cpu_info.rs", check=_free_cpus),
    Rule(id="count", source=f"{_GUIDE}, considerations", check=_count),
    Rule(id="name", source="aws-nitro-enclaves-cli, src/lib.rs, new_enclave_name", check=_name),
    Rule(id="cid", source=f"{_DRIVER}, NE_ERR_INVALID_ENCLAVE_CID", check=_cid),
    Rule(id="signature", source=f"{_GUIDE}, errors of nitro-cli; signing certificates", check=_signature),
    Rule(id="debug", source="AWS KMS Developer Guide, attested platforms", check=_debug),
)


def now() -> datetime:
    """The parent's own clock."""
    return datetime.now(UTC)
