"""The command line `gpushare`: one file per group of commands, each imported when its command runs."""
