"""Sessions and batches of the archipelago: routing, offers, forwarding, results."""
