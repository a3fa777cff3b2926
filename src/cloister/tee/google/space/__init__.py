"""Tokens of Google Cloud Attestation, mostly those of Confidential Space."""
