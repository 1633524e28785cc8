"""Manifests, the sparse verified chunk store, read-through fetch and `island://`."""
