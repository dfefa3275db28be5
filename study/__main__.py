"""`python -m kdstudy` runs the `kdstudy` command."""

from kdstudy.cli.main import main

if __name__ == "__main__":
    main()
