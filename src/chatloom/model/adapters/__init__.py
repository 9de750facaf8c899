"""Training few weights instead of all: LoRA, virtual tokens (prefix, prompt, P-tuning), freezing; PEFT's files."""
