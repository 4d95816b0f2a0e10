"""What both builder scripts share, from a run to a data set on the Hub.

    columns     Arrow columns without a Python row
    places      where rows and vectors are read: a run, a built directory, a revision of the Hub
    builder     the ``datasets`` builder over them
    build       a directory that ``load_dataset`` reads: Parquet, safetensors, manifest, card
    publish     that directory on the Hub, under a tag
    command     the command line of both scripts

It depends on the on-disk contract alone.
"""
