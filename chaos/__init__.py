"""Breaking RelayMesh on purpose: clusters of real processes, cut networks, killed and paused nodes.

Everything here treats a node as its users do, by its command line, its control socket and its signals.
"""
