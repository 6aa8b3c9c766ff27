"""Stand-ins for NVIDIA's library and programs, built from our own source for machines without a card."""
