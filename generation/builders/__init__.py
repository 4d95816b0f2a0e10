"""From a finished run to a data set on the Hub: what both builder scripts share."""
