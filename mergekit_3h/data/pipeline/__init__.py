"""The whole way from models to the two sets, from one configuration file, resumable at every step.

``settings.py`` declares the file, ``parts.py`` what there is to make, ``run.py`` makes it, ``summary.py`` tells.
"""
