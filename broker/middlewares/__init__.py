"""What goes on around a handler or a call, one file each."""
