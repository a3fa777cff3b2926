"""Trust anchors and certificate chains, checked at a time that the caller gives; only `fetch` has network and clock."""
