"""SIMULATED, NOT INTEL: stands for Intel Trust Authority, for laptops and tests.

It verifies SIMULATED TDX quotes with this package's own verifier and signs tokens under a root of its own, so that
every token ends with `genuine = False`. docs/ita.md says what it enforces, and what of that is assumed.
"""
