"""What the benchmark of reading and writing volumes needs: made files, and every way to read them."""
