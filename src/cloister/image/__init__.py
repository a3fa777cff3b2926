"""Images: one description, one deterministic root file system, and from it what each TEE boots and measures."""
