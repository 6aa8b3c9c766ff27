"""What every test shares. Lying here, it puts `tests/` on the import path, so that `standins` can be imported."""
