"""Parquet, Avro and HATS: the only users of pyarrow, fastavro and mocpy."""
