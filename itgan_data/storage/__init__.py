"""Files: whole or absent, and read as untrusted data."""
