"""``python -m meltr``."""

from meltr.cli.app import main

if __name__ == "__main__":
    main()
