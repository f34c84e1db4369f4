"""The five verbs beneath botocore: one small HTTP/1.1 client, SigV4 and two codecs, for the calls that are made all day."""
