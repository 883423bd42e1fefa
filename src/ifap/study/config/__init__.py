"""What ``params.yaml`` may say, as types: every key with its kind and limits, read and checked in one place."""
