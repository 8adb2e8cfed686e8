import json
import sys

from mergekit import merge_methods

if __name__ == "__main__":
    sys.stdout.write(json.dumps([method.spec.name for method in merge_methods.registered_methods()]))
