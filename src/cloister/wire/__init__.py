"""Strict decoders for bytes from strangers: no cryptography, no I/O, one exception (MalformedError)."""
