"""How fast, how exact and how lean the kernels are on this machine, beside other implementations; docs/performance.md.

Read ``comparison.py`` first: it picks shapes within a budget. ``end_to_end.py`` measures whole mergekit runs.
"""
