"""A merge that never starts over: mergekit's plan and tail, with an executor that remembers.

``resumable.py`` runs mergekit's ``run_merge`` and puts its own executor into the place of mergekit's. ``tasks.py`` is
mergekit's schedule, of which any part can be run; ``pieces.py`` writes the tensors that come out of it, a file for each
shard or part of one; ``journal.py`` says which of these files are finished; ``layout.py`` makes mergekit's shards and
index of them; ``folder.py`` is where all of it lies until the model is whole. ``on_ray.py`` makes the pieces on the
workers of a cluster instead.
"""
