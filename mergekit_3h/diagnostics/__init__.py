"""What the experts' updates look like before a merge, and what a merge made of them.

``entries.py`` and ``subspaces.py`` hold the measures, as functions of plain tensors; ``survey.py`` takes them of every
tensor of a model in one pass, ``conclusions/`` answers questions by them, ``page.py`` and ``heat_maps.py`` draw them.
``record.py`` is what a merge leaves behind.
"""
