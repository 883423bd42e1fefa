"""Train a network after a cut: distillation from a teacher, and one optimizer step in any precision."""
