"""What a client accepts: the policy document, the appraisal of evidence against it, and the verdict."""
