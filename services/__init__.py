"""The services that run on the broker, one package each."""
