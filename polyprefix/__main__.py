"""`python -m polyprefix`, the same as `polyprefix`."""

from polyprefix.cli import main

main()
