"""Many merges, tuned alike and compared.

``settings.py`` reads the sweep's file, ``named_methods.py`` knows the 3H paper's methods by name, ``trials.py`` is one
method: its trials on the validation split and its best one on the test split; ``sweeping.py`` runs all of them, here or
on a cluster, and ``sweep_page.py`` shows what came out.
"""
