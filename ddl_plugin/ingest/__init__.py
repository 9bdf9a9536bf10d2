"""From image files to RecordIO files, and what is wrong with one: sources, listing, treatment, workers, job, check."""
