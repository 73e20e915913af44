"""What people type: the `relaymesh` command, the demo and the benchmarks.

`cli` is the entry point. `session` holds what all commands share; `work_commands`, `node_commands` and `mesh_commands`
are the commands; `connection` says which node is asked, `output` how answers look, `durations` what `30s` means.
"""
