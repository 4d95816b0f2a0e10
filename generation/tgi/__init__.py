"""Talking to text-generation servers: the HTTP client, the scheduler over endpoints, and the embedded default."""
