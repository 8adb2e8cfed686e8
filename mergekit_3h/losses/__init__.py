"""Records and a model in, token losses out. Search, safety and evaluation stand on this room."""
