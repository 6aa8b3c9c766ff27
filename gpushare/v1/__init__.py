"""The generated API: messages and stubs of `proto/gpushare/v1`. Regenerate with `make proto`; never edit."""
