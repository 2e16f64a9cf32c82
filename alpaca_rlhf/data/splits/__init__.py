"""Which prompt belongs to which stage: near-duplicates, dealing, and the firewall."""
