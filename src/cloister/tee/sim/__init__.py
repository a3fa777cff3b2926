"""SIMULATED, NOT A TEE: signs documents in Nitro's format under a root made in software, for laptops and tests.

Only the local platform may import this folder; verifiers never do. What it signs goes through the same verifier as real
evidence and always ends with `genuine = False`.
"""
