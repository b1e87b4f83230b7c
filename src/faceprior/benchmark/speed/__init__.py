"""How fast restoring is, how near to what the machine can do, and how time and memory grow."""
