"""One target for every decoder of bytes from strangers: only the project's own errors may leave it."""
