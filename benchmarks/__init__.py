"""The benchmarks: `python -m benchmarks [NAME …] [--runs 5] [--quick]`; README.md has method and results."""
