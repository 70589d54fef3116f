"""Outbound calls, inbound requests, events, and the services that run on this node."""
