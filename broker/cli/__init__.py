"""What the command lines share: settings, logs, output, and running a node until it is told to stop."""
