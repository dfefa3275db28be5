"""`python -m kdstudy` is the `kdstudy` command."""

from kdstudy.cli.main import main

if __name__ == "__main__":
    main()
