"""What tests start and ask: upstreams, a proxy as an operator runs it, clients, and what must never leak."""
