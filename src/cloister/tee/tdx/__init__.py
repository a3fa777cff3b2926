"""Intel TDX: quotes of trust domains."""

MEDIA_TYPE = "application/vnd.cloister.tdx-quote"
