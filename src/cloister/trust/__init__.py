"""Trust anchors and certificate chains, checked at a time that the caller gives. No network, no clock."""
