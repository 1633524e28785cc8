"""The engines of an island: the embedded one and Livy servers."""
