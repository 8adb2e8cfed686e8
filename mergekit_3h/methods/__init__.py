"""Merge methods for mergekit: thin adapters over the kernels.

Importing this package registers them. Usually nobody has to: the start-up hook does (docs/registration.md).
"""

import mergekit.merge_methods  # noqa: F401  first, so that the start-up hook meets no half-imported method module

from mergekit_3h.registration import register_own_methods

register_own_methods()
