"""Knows the bytes: HTTP heads, framing, WebSocket handshakes, Deepgram's routes. Pure: bytes in, values out."""
