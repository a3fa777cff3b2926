"""An ordinary machine: the whole system with a SIMULATED TEE, for laptops, demonstrations and tests."""
