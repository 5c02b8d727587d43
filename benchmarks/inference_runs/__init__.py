"""What benchmarks/inference.py runs: inferers in fresh processes, and ACC-UNet in them and without."""
