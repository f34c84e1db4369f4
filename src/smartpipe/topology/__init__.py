"""The AWS resources that services need: derived from declarations, compared with AWS, exported."""
