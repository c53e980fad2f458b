"""What lies on the disk, byte by byte: segments, manifests, small files; and how it gets there."""
