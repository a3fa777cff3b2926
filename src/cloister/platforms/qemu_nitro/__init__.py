"""Nitro Enclaves emulated on this machine: a real kernel under QEMU, evidence signed under a SIMULATED root."""
