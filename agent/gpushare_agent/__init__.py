"""The gpushare node agent. This file stays empty of imports: the launcher's process loads the package too."""
