"""The trust anchor of SGX quotes: Intel's one root for SGX and TDX."""

from __future__ import annotations

from cloister.trust.dcap.root import ANCHORS, INTEL_SGX_ROOT_CA

__all__ = ["ANCHORS", "INTEL_SGX_ROOT_CA"]
