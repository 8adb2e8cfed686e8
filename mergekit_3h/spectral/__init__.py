"""Merge methods by singular vectors, one a file, and what they do to one tensor of a model.

``method.py`` is the contract that each fills, ``registry.py`` the one list of them, ``tensors.py`` one tensor of the
merged model. A new method is a new file here, or an entry point of another package (docs/architecture.md).
"""
