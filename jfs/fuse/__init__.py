"""The kernel's side: FUSE requests in, replies out."""
