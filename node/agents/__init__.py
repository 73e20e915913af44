"""Running user code outside the node's process, and proving that nothing of it is left behind.

- `api` is what an author of agents imports (through `relaymesh`); `handlers` calls one handler and encodes its result
- `host` is the long-lived process that runs Python agents; `host_pool` keeps a few warm and gives them jobs
- `scripts` reads `scripts.json` and runs one executable per job; `builtin_agents` need no process at all
- `spawner`, `guard` and `process_tree` run in a tiny process of their own: they start commands and kill whole trees
- `processes` is the node's side of the spawner; `executor` puts all of it behind `node.env.Executor`

This package and `node` itself must stay light to import: the spawner and user programs import them without Trio.
"""
