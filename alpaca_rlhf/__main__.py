"""`python -m alpaca_rlhf` is `alpaca-rlhf`."""

import sys

from alpaca_rlhf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
