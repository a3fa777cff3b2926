"""The root file system as an OCI image layout (image-spec v1.1), for platforms that run containers or convert them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from cloister.image.tree import Tree, tar

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"


def write(tree: Tree, folder: Path, *, name: str, command: bytes, environment: bytes) -> str:
    """Write the layout, replacing what is there; returns the manifest's digest (`sha256:...`)."""
    shutil.rmtree(folder, ignore_errors=True)
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    layer = blob(tar(tree), _LAYER)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": command.decode().split(), "Env": environment.decode().split(), "User": "0"},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": blob(_json(config), _CONFIG), "layers": [layer]}
    described = blob(_json(manifest), _MANIFEST)
    described["annotations"] = {"org.opencontainers.image.ref.name": name}
    (folder / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    (folder / "index.json").write_bytes(_json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [described]}))
    return str(described["digest"])


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("utf-8")
