"""What a model can do, and what a merge did to it.

How the parts fit together: a *suite* (``suite.py``) names *dimensions* and the *metrics* of each; a metric (one kind a
file in ``metrics/``) measures one *subject* (``subject.py``: a model in memory) and gives *items*, a value each;
``evaluator.py`` runs a suite and writes a *result* (``result.py``), with intervals (``intervals.py``). What is slow is
in a *journal* (``journal.py``), so that a run that is killed goes on.

``audit.py`` looks at models on safety data before they are merged.
"""
