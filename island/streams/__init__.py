"""Sources of new data, subscriptions to them, and the channels that deliver their rows."""
