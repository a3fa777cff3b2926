"""Intel Trust Authority: tokens of a verification service."""

MEDIA_TYPE = "application/vnd.cloister.ita+jwt"
