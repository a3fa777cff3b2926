"""NVIDIA confidential GPUs and NVSwitches: SPDM reports with RIMs; NRAS tokens."""
