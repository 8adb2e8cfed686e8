import os
import time

from mergekit.merge_methods.base import MergeMethod, TensorGroup, merge_method
from mergekit.merge_methods.registry import get, load_entry_points, register, registered_methods

time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0")))  # so that threads meet in this import
load_entry_points("package")

__all__ = ["MergeMethod", "TensorGroup", "get", "merge_method", "register", "registered_methods"]
