"""Reading of a replica: chunks and blocks, checked; and what a reader may see."""
