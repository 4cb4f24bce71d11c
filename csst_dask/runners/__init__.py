"""The order of the pipeline, and Dask: everything else is a plain function that a runner spreads out."""
