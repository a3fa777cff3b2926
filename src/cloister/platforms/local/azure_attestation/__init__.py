"""SIMULATED, NOT MICROSOFT: stands for a provider of Azure Attestation, for laptops and tests.

Its issuer is its own URL, which the verifier of real tokens refuses: nothing that it signs can pass for Microsoft's.
"""
