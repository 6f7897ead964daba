"""What comes with the package and is no code.

`listen.wav`: 6.3 s of English, made with Debian's espeak-ng 1.51 (voice en-us): "This is d g proxy, the front door of a
self hosted Deepgram. With a key, your words may pass." 16 kHz, mono, linear16.
"""
