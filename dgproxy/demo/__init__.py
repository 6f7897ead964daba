"""The demo: all of dgproxy on one machine, written as a user of everything else.

It makes a directory as `dgproxy init` does, runs `dgproxy standin` and `dgproxy run`, makes a key with `dgproxy keys
create`, and then is a client: the official SDK over HTTPS and WSS, a request without a key, the key's usage.

| module | does |
|---|---|
| `place` | the directory, its lock, the addresses |
| `children` | the two processes that serve, and commands that are run to their end |
| `client` | what a client does: needs the official SDK, and is imported last |
| `paste` | the lines to paste |
| `live`, `listen.mjs` | programs of their own, which the lines run: copied into the directory, imported by nobody |
| `show` | what is printed |
| `story` | the whole, from top to bottom |
"""
