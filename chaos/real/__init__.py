"""Chaos on real processes: clusters of `relaymesh-node`, cut networks, killed and paused nodes, full disks.

Everything here treats a node as its users do, by its command line, its control socket and its signals.

- `driver`:     plays a scenario on real processes and judges what is seen from outside; `hunt` draws random ones
- `processes`:  a cluster of real nodes, by default on loopback addresses of its own (`networks`)
- `lines`:      what lies between nodes; `firewall` cuts it by nftables rules, `tun_switch` carries every packet itself
- `small_disk`: a disk that can be full
- `trouble`:    the faults of a scenario, each at its time
- `clients`:    who submit, cancel, replay and look, and write down what they were told; `agents` is what they have run
- `evidence`:   what is left when all is quiet, and `verdict` the promises that it is held against
"""
