"""What every room uses: devices and batch sizes, files, processes, randomness, registries, provenance."""
