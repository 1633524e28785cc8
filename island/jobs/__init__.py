"""Sessions and batches of the archipelago: routing, offers, forwarding and results."""
