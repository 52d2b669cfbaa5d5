"""The decisions: pure, no I/O, no clock, no client. Each module opens with its table."""
