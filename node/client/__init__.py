"""The Python API of those who submit work. Its public names are those of `relaymesh`.

- `client` and `async_client` are twins: sync for threads and scripts, async for Trio programs. `verbs` is the one body
  of logic of both, written as coroutines; under the sync face they never suspend
- `mesh_port` asks nodes, one after another; `sync_connections` and `trio_connections` are the two ways to reach one,
  `targets` says which nodes were meant
- `workflow` builds a DAG; `agent_names` and `values` turn functions, inputs and results into what nodes take and give
- `memory` is a mesh in this process for users' tests: `memory_worker` runs the product's own transitions over
  `memory_store`, in virtual time

Agent hosts import `relaymesh` too, so all of this is imported only when one of its names is used.
"""
