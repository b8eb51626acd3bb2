"""The measurements that `benchmarks/data.py` takes, one file a subject."""
