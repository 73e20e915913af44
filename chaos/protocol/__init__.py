"""The membership protocol alone: bare engines of `mesh.gossip` on one heap of events, up to a thousand of them."""
