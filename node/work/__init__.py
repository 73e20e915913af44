"""Durable work on top of the replicated tables: tasks, their steps, and who owns them.

- pure rules:    `definition`, `status`, `priorities`, `retries`, `explain`
- stored state:  `tables` (declarations), `work_queue`, `history`, `payloads`, `transitions` (the only writer of steps)
- moving parts:  `runtime` (slots that claim and run), `ownership` (take-over, hand-over, asking for work)
- for people:    `views` (the JSON of tasks and steps)
"""
