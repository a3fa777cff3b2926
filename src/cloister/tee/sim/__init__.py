"""SIMULATED, NOT A TEE: signs Nitro documents and TDX quotes under roots made in software, for laptops and tests.

Only the local platform may import this folder; verifiers never do. What it signs goes through the same verifier as real
evidence and always ends with `genuine = False`.
"""
