"""Cloister: ask a language model in a trusted execution environment, verified and sealed."""
