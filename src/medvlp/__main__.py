"""``python -m medvlp`` is ``medvlp``."""

from medvlp.cli import main

if __name__ == "__main__":
    main()
