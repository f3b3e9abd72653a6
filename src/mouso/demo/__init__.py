"""``mouso demo``: Mouso at work on a real code base, one job per file.

The life of a demo: the files are found (``source``) → one job each is enqueued in ``jobs``' app → a ``mouso worker``
runs them: each asks the licence service (``licences``) and measures its file (``measure``) → a last job makes a page of
all results (``summary``, ``page``, ``charts``) and mails it to the SMTP server (``smtp_sink``) → the counts are
printed.
``show`` directs it, ``command`` is the command line.
"""
