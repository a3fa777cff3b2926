"""The sealed channel: key statement and binding, HPKE, chunked Oblivious HTTP, frames, receipts. No I/O, no clock."""
