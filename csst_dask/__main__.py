"""``python -m csst_dask`` is ``csst-dask``."""

from csst_dask.cli import main

if __name__ == "__main__":
    main()
