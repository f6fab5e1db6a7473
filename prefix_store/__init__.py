"""What a prefix is, how its file is read and checked, and where its versions are kept."""
