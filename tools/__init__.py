"""What people type: the `relaymesh` command, the demo and the benchmarks.

`cli` is the entry point; `command_parts` imports a command when it is used. `session` holds what all commands share;
the modules `…_commands` are the commands; `connection` says which node is asked, `output` how answers look, `durations`
what `30s` means. `top`, `doctor` and `workflow_watch` show a mesh; `top_view`, `doctor_checks` and `workflow_drawing`
are their pure parts.
"""
