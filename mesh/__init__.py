"""The protocol as pure state machines: no loop, no clock, no socket, no store.

Every method takes `now` (seconds on a clock that never goes backwards) or a stamp, randomness comes from a
`random.Random` given to the constructor, and what the outside world should do is returned as a list of effects, in
order.

Where to look:

- names and errors:        `ids`, `errors`, `effects`, `profiles`
- what releases share:     `protocol`
- identity and packets:    `identity`, `sealing`, `replay_window`, `messages`, `codec`
- who is in the mesh:      `records`, `own_record`, `membership`, `verdicts`, `effective`, `freeze`
- who still answers:       `detector`, `relayed_probes`, `suspicion`, `local_health`, `redial`
- spreading news:          `rumors`, `dissemination`, `digests`, `vector_watch`, `conversation`, `outbox`
- all of that as one:      `gossip`, the membership core of a node
- replicated rows:         `tables`, `rows`, `registers`, `replica`, `hlc`, `version_vector`, `row_codec`, `bundles`
- who may do the work:     `fences`, `placement`, `takeover`, `gate`

Nothing here knows what a task is: a replicated table is a declaration, and a lease is an epoch on a row.
"""
