"""The blind side: runs on the machine's owner's ground, holds no key, sees no plaintext, imports no cryptography."""
