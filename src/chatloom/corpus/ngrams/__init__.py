"""n-gram language models: trained here, memory-mapped, for perplexity and its buckets."""
