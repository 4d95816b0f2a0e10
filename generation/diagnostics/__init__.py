"""What can be measured of the modality gap, and of what a transfer does to it.

    vectors, cloud              rows of files, checked; one pass over them: moments, norms, duplicates, a sample
    spectrum, neighbours,       the measures: pure functions of covariances and rows
    cosines, pairs, clusters
    figures                     every figure of the papers: its definition, the printed value, what it needs
    metrics                     the figures that the data at hand allows
    pictures, report            PNG; Markdown and JSON
    of_run, of_ground_truth     the command ``diagnose``

Text embeddings are u, real images' embeddings v, transferred texts z, all rows of [n, d]. The papers are Unicorn v2
(arXiv 2503.22655v2), ReVision (2602.07026v3) and AnisoAlign (2605.07825v1).
"""
