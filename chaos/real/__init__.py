"""Chaos on real processes: clusters of `relaymesh-node`, cut networks, killed and paused nodes.

Everything here treats a node as its users do, by its command line, its control socket and its signals.

- `processes`: a cluster of real nodes on loopback addresses of its own
- `firewall`:  lines cut by nftables rules, with counters that prove the cut
- `hunt`:      seeded faults and clients on a real cluster, and a verdict from the databases that are left
"""
