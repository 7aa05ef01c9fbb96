"""The commands, one module per group. Each parses, calls, shows; the work is elsewhere."""
