"""Streams between peers, and to the host's own operator.

- `frames` cuts messages into frames and back, without any loop: the synchronous CLI client uses it too
- `tls` builds the contexts that prove both ends, and reads who the other end is
- `local_socket` binds and dials Unix sockets at paths of any length
- `framing` sends and receives whole messages on a stream
- `rpc` is requests and replies over that: `RpcServer`, `RpcPool`
"""
