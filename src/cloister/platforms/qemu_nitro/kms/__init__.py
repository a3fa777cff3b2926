"""SIMULATED AWS KMS for the lab: keys in a file, evidence under a SIMULATED root. Protects nothing.

What it does check, it checks for real: request signatures, key policies, attestation documents. docs/key-release.md
lists what AWS KMS does that this does not.
"""
