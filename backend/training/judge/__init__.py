"""Fine-tuning of a vision-language judge."""
