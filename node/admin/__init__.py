"""Answers the commands of the `relaymesh` CLI: `service` takes them in, `work_commands` and `mesh_commands` do them."""
