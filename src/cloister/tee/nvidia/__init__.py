"""NVIDIA confidential GPUs and NVSwitches: SPDM reports with RIMs; NRAS tokens."""

MEDIA_TYPE = "application/vnd.cloister.nvgpu"
NRAS_MEDIA_TYPE = "application/vnd.cloister.nras-eat"
