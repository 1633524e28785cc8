"""Islands on the local network, found by multicast DNS, and archipelagos that one could ask to join."""
