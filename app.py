"""`python app.py`: the same as `alpaca-rlhf app`."""

from __future__ import annotations

import sys

from alpaca_rlhf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
