"""`python -m boltzflow` is the `boltzflow` command."""

from boltzflow.cli import main

if __name__ == "__main__":
    main()
