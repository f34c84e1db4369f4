"""The topology for other tools: templates, documents, pictures and policies. Pure: text goes to whoever asks for it."""
