"""The command `ifap`, and the user's files that its options name."""
