"""The shell around `mesh`: the only place with Trio, apsw, sockets, processes and clocks, reached through `env.Env`.

- `daemon` starts and stops a node; `config`, `settings` say how, `settings_reload` how from now on
- `identity_files` says who it is
- `storage/` keeps rows durable; `streams/` talks TLS; `gossip_loop` drives the membership core
- `replication/` pushes, pulls and verifies rows; `work/` owns and runs steps; `agents/` runs user code in processes
- `admin/` answers every command of the `relaymesh` CLI
"""
