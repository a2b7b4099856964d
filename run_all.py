#!/usr/bin/env python
"""Executes the replication notebooks and holds their claims against the expected ranges; see `run_all.py --help`."""

import sys

from collapse_lib.replication.cli import main

if __name__ == "__main__":
    sys.exit(main())
