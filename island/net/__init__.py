"""The two network ports: sessions with other islands (TLS), and the Livy gateway and operator API (HTTP)."""
