"""The model owner's key-release service: appraises a replica's evidence, releases a key, keeps a ledger."""
