"""`python -m cloister`."""

from cloister.cli.main import main

if __name__ == "__main__":
    main()
