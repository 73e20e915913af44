"""The protocol as pure state machines: no loop, no clock, no socket, no store.

Every method takes `now` (seconds on a clock that never goes backwards) or a stamp, randomness comes from a
`random.Random` given to the constructor, and what the outside world should do is returned as a list of effects, in order.

Where to look:

- identity and packets: `ids`, `identity`, `sealing`, `replay_window`, `codec`, `messages`
- who is in the mesh:   `records`, `membership`, `detector`, `suspicion`, `local_health`, `freeze`, `effective`
- spreading news:       `rumors`, `digests`, `gossip` (the composition of all of the above)
- replicated rows:      `tables`, `rows`, `registers`, `hlc`, `version_vector`, `replica`, `bundles`
- who may do the work:  `fences`, `placement`, `takeover`, `gate`

Nothing here knows what a task is: a replicated table is a declaration, and a lease is an epoch on a row.
"""
