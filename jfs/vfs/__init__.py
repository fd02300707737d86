"""Files as users see them: handles, reader, writer, special files."""
