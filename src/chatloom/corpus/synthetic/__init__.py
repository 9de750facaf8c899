"""Synthetic text: clusters of documents and their topic terms -> prompts -> replies -> filtered, distinct documents.

vectors.py and clustering.py put documents into clusters, terms.py says what a cluster is about, templates.py and
prompts.py write the prompts, filters.py judges the replies; model.py, seeds.py, output.py and making.py do it shard by
shard. Who answers is not decided here: the stage passes replies.
"""
