"""The wire: packets, topics, serializers, transforms and JavaScript's ways."""
