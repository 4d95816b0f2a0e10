"""One HTML page about a run, whole in itself: no server, no network, no other file.

    stages       what the manifest says: states, funnel, sessions, tokens, what is missing
    texts        one pass over the captions: lengths, variety, sources, the texts of chosen rows
    rows         the rows that can be browsed, with their conversations and neighbours
    charts, svg  figures, and how they stand in a page that is light or dark
    sections     what is shown beside what the paper has, made of ``parts``
    page         the template filled
    command      the command ``report``

Whatever a model or a seed file wrote is hostile here: Jinja escapes it, the script writes it as text alone, and the
page's own policy (Content-Security-Policy) runs no other script and fetches nothing.
"""
