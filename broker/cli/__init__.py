"""What the command lines share: settings, logs, output, and running a node until a signal stops it."""
