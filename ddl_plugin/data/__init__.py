"""From RecordIO files to batches: records, attributes, partition, pairs, sampler, iterator."""
