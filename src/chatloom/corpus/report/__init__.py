"""What a selection did, counted shard by shard: a survey before the decision, a tally after it, figures of both.

All counts are whole numbers that add up, and examples are those with the smallest keyed hashes, so that the result is
the same however the documents are cut into shards; memory is bounded whatever their number.
"""
