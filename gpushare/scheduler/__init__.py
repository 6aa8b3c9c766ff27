"""The scheduler's shell around the pure core. Re-exports nothing."""
