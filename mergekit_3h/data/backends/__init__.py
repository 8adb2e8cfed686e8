"""Models that answer: a local transformers model or an OpenAI-compatible server, behind one small protocol.

``protocol.py`` is what a caller sees; ``settings.py`` declares the options and opens a backend from them.
"""
