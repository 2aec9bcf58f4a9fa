"""`python -m cnnexp` is the command `cnnexp`."""

from cnnexp.cli import main

if __name__ == "__main__":
    main()
