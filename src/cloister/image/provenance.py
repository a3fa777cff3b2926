"""What went into an image (CycloneDX bill of materials) and how it came about (in-toto statement, SLSA provenance)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from cloister import __version__
from cloister.image import debian, toolchain
from cloister.image.config import ImageConfig, ModelInImage

_REQUIREMENT = re.compile(rb"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)


def bill_of_materials(config: ImageConfig, lock: debian.Lock, requirements: bytes) -> dict[str, object]:
    """CycloneDX 1.6: Debian packages by digest, wheels by version (their digests are in the hashed list), the model."""
    components: list[dict[str, object]] = [
        {
            "type": "library",
            "name": package.name,
            "version": package.version,
            "purl": f"pkg:deb/debian/{package.name}@{package.version}?arch=amd64",
            "hashes": [{"alg": "SHA-256", "content": package.sha256}],
        }
        for package in lock.packages
    ]
    for name, version in _REQUIREMENT.findall(requirements):
        purl = f"pkg:pypi/{name.decode()}@{version.decode()}"
        components.append({"type": "library", "name": name.decode(), "version": version.decode(), "purl": purl})
    components.append({"type": "application", "name": "cloister", "version": __version__})
    if isinstance(config.model, ModelInImage) and config.model.path is not None:
        digest = hashlib.sha256(config.model.path.read_bytes()).hexdigest()
        hashes = [{"alg": "SHA-256", "content": digest}]
        components.append({"type": "machine-learning-model", "name": config.model.path.name, "hashes": hashes})
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}


def statement(config: ImageConfig, document: Mapping[str, object], bill: Mapping[str, object]) -> dict[str, object]:
    """in-toto Statement v1 with a SLSA v1 predicate; unsigned: sign it with your own tools where you need that."""
    image = document["image"]
    assert isinstance(image, dict)
    components = bill["components"]
    assert isinstance(components, list)
    resolved = [
        {
            "name": each["name"],
            "uri": each.get("purl", each["name"]),
            "digest": {"sha256": each["hashes"][0]["content"]},
        }
        for each in components
        if "hashes" in each
    ]
    resolved.append({"name": "toolchain", "uri": "toolchain.lock.json", "digest": {"sha256": toolchain.lock().digest}})
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": image["file"], "digest": {"sha256": image["sha256"]}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://cloister.invalid/build/eif/v1",
                "externalParameters": {"name": config.name, "version": config.version, "kernel": config.kernel},
                "resolvedDependencies": resolved,
            },
            "runDetails": {"builder": {"id": f"cloister {__version__}"}},
        },
    }
