"""``python -m graphaug`` is the command ``graphaug``."""

from graphaug.cli import main

if __name__ == "__main__":
    main()
