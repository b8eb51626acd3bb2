"""What `benchmarks/gpu.py` is made of: models of random weights, their cost, one measurement, and the report."""
