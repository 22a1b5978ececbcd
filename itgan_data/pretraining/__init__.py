"""What makes a generator."""
