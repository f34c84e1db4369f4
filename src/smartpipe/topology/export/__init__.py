"""The topology in the formats of other tools: templates, documents, pictures and IAM policies. Pure."""
