"""The embedded Livy-compatible Spark engine, a program of its own."""
