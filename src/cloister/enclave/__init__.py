"""The measured code: what runs inside the TEE. Holds keys and weights, never a verifier or a policy."""
