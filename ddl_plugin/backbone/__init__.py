"""The embedding network: loaded from checkpoints, built anew, rewritten for the CPU, run for inference."""
