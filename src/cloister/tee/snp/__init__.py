"""AMD SEV-SNP: attestation reports signed by a chip's or a cloud's endorsement key."""
