"""Sealed weights: a container that only measured code can open."""
