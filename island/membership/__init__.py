"""The server list and the local opinion of who is alive."""
