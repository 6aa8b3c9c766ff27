"""What both daemons and the command line know of the host they are installed on: units, files, versions, findings."""
