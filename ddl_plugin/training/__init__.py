"""Fine-tuning: what a run needs is put together, trained step by step, logged, saved and resumed."""
