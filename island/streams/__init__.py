"""Sources, channels and subscriptions."""
