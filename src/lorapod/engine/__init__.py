"""The built-in trainer, on diffusers, transformers and peft. Started as a process of its own; nothing imports it."""
