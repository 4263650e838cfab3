"""`python -m cryoscan` is the same as `cryoscan`."""

from cryoscan.cli import main

if __name__ == "__main__":
    main()
