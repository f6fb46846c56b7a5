"""A vision-language judge learns to answer questions about pictures and previews."""
