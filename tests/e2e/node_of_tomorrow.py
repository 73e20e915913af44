"""`relaymesh-node` of the release in `chaos.simulation.next_release`, which here speaks one protocol version more."""

import sys

import mesh.protocol
import node.node
from chaos.simulation import next_release
from node import daemon
from node.storage.store import Store


class NextStore(Store):
    def __init__(self, env, tables, *, node_id, path, migrations):
        super().__init__(env, next_release.TABLES, node_id=node_id, path=path, migrations=next_release.MIGRATIONS)
        next_release.keep_diary(self, node_id)


mesh.protocol.NEWEST += 1
node.node.Store = NextStore
sys.exit(daemon.main())
