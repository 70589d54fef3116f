"""Streams: reading, writing, ordering and flow control."""
