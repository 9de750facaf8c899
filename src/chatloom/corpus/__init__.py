"""Raw pages -> labelled documents: reading, extraction, language, rules, duplicates, split; never loads torch.

Start with `pipeline.clean`; the demo's pages come from `pydoc_pages.render`.
"""
