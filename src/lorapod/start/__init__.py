"""The guided session, apart from any terminal: its questions and answers, what fits this machine, and the work at its end.

`steps` is the list of questions; `session` goes through them, back and by number; `answers` keeps them on disk; `facts`
is what is known of the machine; `work` does what has to be done before training, side by side. Nothing here prints or reads
a key press: `lorapod.cli.start` shows it in a terminal, and another front end can do the same.
"""
