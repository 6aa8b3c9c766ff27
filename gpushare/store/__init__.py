"""The durable journal: a port and its implementations. Nothing is re-exported; import the module you mean."""
