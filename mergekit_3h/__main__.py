"""``python -m mergekit_3h`` is the command ``mergekit-3h``, where the folder of scripts is not on the path."""

from mergekit_3h.cli import main

if __name__ == "__main__":
    main()
