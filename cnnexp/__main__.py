"""`python -m cnnexp` is the command `cnnexp`."""

import sys

if not sys.flags.safe_path:  # installed packages come before modules of the working folder, as for `cnnexp`
    sys.path.append(sys.path.pop(0))

from cnnexp.cli.main import main

if __name__ == "__main__":
    main()
