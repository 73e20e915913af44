"""A world that a seed decides: virtual time, and simulated networks, disks and clocks for whole nodes."""
