"""Readers of Parquet, Avro and HATS, and the filters and statistics of their rows."""
