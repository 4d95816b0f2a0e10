"""What both builder scripts share, from a run to a data set on the Hub.

finished    a finished run: its rows and vectors, joined by id
published   a built directory, or a pinned revision of the Hub
builder     the ``datasets`` builder over either
build       write a directory that ``load_dataset`` reads
versions    what changed since the version before, for the changelog
publish     upload that directory to the Hub, under a tag
command     the command line of both scripts
"""
