"""Intel Trust Authority: tokens of a verification service."""
